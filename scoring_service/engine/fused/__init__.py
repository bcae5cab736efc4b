"""Modules of a model that kernels replace, and linear layers as the CPU's kernel wants them."""
