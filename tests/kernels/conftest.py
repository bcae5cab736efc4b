"""What every test of the kernels has."""

from tests.torch_threads import one_torch_thread

__all__ = ["one_torch_thread"]
