"""The machine: its device and processor, and how much memory is left."""
