"""Updates of weights: reading a checkpoint, staging, installing."""
