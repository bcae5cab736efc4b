"""Plain transformers, one sequence at a time: nothing padded, nothing shared."""

from __future__ import annotations

from benchmarks.peers.transformers_padded import TransformersPadded
from benchmarks.sides import SideConfig


def make(config: SideConfig) -> TransformersPadded:
    """Loads it."""
    return TransformersPadded(config, batch=1)
