"""From a trainer's tensors to committed weights: `python -m benchmarks.weights`."""
