"""What a packed engine needs of a machine: pages, and the sizes of steps and chunks."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from scoring_service.engine.memory import free_memory
from scoring_service.engine.packed.engine import PackedSettings
from scoring_service.engine.packed.pages import (
    PAGE_TOKENS,
    LayerShape,
    PagePool,
    token_bytes,
)
from scoring_service.errors import ConfigurationError
from scoring_service.types import EngineConfig

_SPARE_PAGES = 4
"""A sequence takes up to so many pages more than its tokens fill: segments begin a page."""


@dataclass(frozen=True, slots=True)
class PackedSetup:
    """Pages, and how steps are made."""

    pool: PagePool
    settings: PackedSettings
    shapes: list[LayerShape]
    """What the layers keep of a token."""

    @property
    def max_sequence_tokens(self) -> int:
        """Longest sequence that pages can hold by itself."""
        return (self.pool.pages - _SPARE_PAGES) * PAGE_TOKENS


def set_up(
    config: EngineConfig, shapes: list[LayerShape], dtype: torch.dtype, device: torch.device
) -> PackedSetup:
    """Sizes the pool from what the device has left after the weights.

    Raises:
        ConfigurationError: not even a short sequence fits.
    """
    on_cpu = device.type == "cpu"
    share = config.memory_utilization or (0.25 if on_cpu else 0.9)
    left = free_memory(device)
    pages = int(left * share) // (token_bytes(shapes, dtype) * PAGE_TOKENS)
    if pages <= 2 * _SPARE_PAGES:
        raise ConfigurationError(
            f"{share:.0%} of the {left >> 20} MiB left beside the weights do not hold the keys and "
            "values of a sequence: raise memory_utilization, or serve on a larger device"
        )
    return PackedSetup(
        PagePool(shapes, pages, dtype, device),
        PackedSettings(
            chunk_size=config.chunk_size or (64 if on_cpu else 256),
            max_batch_tokens=config.max_batch_tokens or (1024 if on_cpu else 8192),
        ),
        shapes,
    )
