"""What is tried at load: whether packing, kernels, graphs and the head compute what they should."""
