"""Triton kernels, one a file. Imported by `dispatch` where a CUDA device is, and by their tests."""
