"""The default generator of a GPU, across recordings that fail."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def generator_kept() -> Iterator[None]:
    """A context that records: where that fails, the device's default generator is as it was.

    A recording that is broken off leaves it in the belief that it goes on, and every later draw
    fails: "Offset increment outside graph capture encountered unexpectedly". So it gets a state of
    its own again, with the seed and offset that it had.
    """
    device = torch.cuda.current_device()
    generator = torch.cuda.default_generators[device]
    before = generator.get_state()
    try:
        yield
    except BaseException:
        fresh = torch.Generator(f"cuda:{device}")
        fresh.set_state(before)
        generator.graphsafe_set_state(fresh.graphsafe_get_state())
        raise
