"""How many threads torch has in tests."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch


@contextmanager
def torch_threads(number: int) -> Iterator[None]:
    """So many for what is inside; afterwards as many as before, whatever was set meanwhile."""
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@pytest.fixture(scope="module", autouse=True)
def one_torch_thread() -> Iterator[None]:
    """Tensors are small in tests, and a second thread only waits on a busy machine."""
    with torch_threads(1):
        yield
