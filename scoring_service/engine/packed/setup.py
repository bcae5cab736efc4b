"""What a packed engine needs of a machine: pages, and the sizes of steps and chunks."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from scoring_service.engine.attention.pages import LayerShape, PagePool
from scoring_service.engine.machine.memory import free_memory
from scoring_service.engine.machine.page_budget import (
    BATCH_TOKENS,
    BESIDE_SAMPLES,
    CHUNK_TOKENS,
    GRAPH_ROWS,
    MEMORY_SHARE,
    SPARE_PAGES,
    graph_bytes,
    page_bytes,
    pages_beside,
    step_tokens,
)
from scoring_service.engine.model.context_cost import ContextCost
from scoring_service.engine.packed.settings import PackedSettings
from scoring_service.errors import ConfigurationError
from scoring_service.peak_memory import StepLimits, StepShape, largest_step, step_bytes
from scoring_service.types import PAGE_TOKENS, EngineConfig


@dataclass(frozen=True, slots=True)
class PackedSetup:
    """Pages, and how steps are made."""

    pool: PagePool
    settings: PackedSettings
    limits: StepLimits
    """What bounds the memory of steps."""

    @property
    def step_bytes(self) -> int:
        """What steps may take beside weights and pages, recorded ones among them."""
        recorded = graph_bytes(self.limits.shape) if self.settings.graph_rows else 0
        return step_bytes(self.limits.shape, largest_step(self.limits)) + recorded

    @property
    def max_sequence_tokens(self) -> int:
        """Longest sequence that pages can hold by itself."""
        return (self.pool.pages - SPARE_PAGES) * PAGE_TOKENS


def packed_settings(config: EngineConfig, device: torch.device) -> PackedSettings:
    """Sizes of steps and chunks: what was asked for, or what suits the device."""
    return PackedSettings(
        chunk_size=config.chunk_size or CHUNK_TOKENS[device.type],
        max_batch_tokens=config.max_batch_tokens or BATCH_TOKENS[device.type],
    )


def beside_samples(config: EngineConfig, chunk_size: int, device: torch.device, cuts: bool) -> int:
    """Tokens of scoring and prompts that join few samples; arguments as of `set_up`."""
    least = 0 if cuts else chunk_size
    return config.tokens_beside_samples or max(least, BESIDE_SAMPLES[device.type])


def set_up(
    config: EngineConfig,
    shapes: list[LayerShape],
    shape: StepShape,
    context: int,
    dtype: torch.dtype,
    device: torch.device,
    cuts: ContextCost | None,
    records: bool,
) -> PackedSetup:
    """Sizes the pool from what the device has left after the weights and beside a step.

    Args:
        config: what was asked for.
        shapes: what the layers keep of a token.
        shape: what decides the memory of a step.
        context: tokens of the longest sequence.
        dtype: of keys and values.
        device: that has the pages.
        cuts: what a token costs at its place in a sequence; None where segments cannot be cut.
        records: whether steps that only go on with samples are recorded.

    Raises:
        ConfigurationError: not even a short sequence fits.
    """
    settings = packed_settings(config, device)
    settings = replace(
        settings,
        beside_samples=beside_samples(config, settings.chunk_size, device, cuts is not None),
        cuts=cuts,
        graph_rows=GRAPH_ROWS if records else (),
    )
    limits = StepLimits(
        shape=shape,
        step_tokens=step_tokens(settings.max_batch_tokens, settings.chunk_size),
        chunk_tokens=settings.chunk_size,
        max_samples=settings.max_samples,
        context=context,
    )
    share = config.memory_utilization or MEMORY_SHARE[device.type]
    if device.type == "cuda":
        # Pages are few large tensors: what probes left in torch's cache is no room for them.
        torch.cuda.empty_cache()
    left = free_memory(device) - (graph_bytes(shape) if records else 0)
    working = step_bytes(shape, largest_step(limits))
    page = page_bytes(sum(layer.width for layer in shapes), shape.hidden, dtype.itemsize)
    pages = pages_beside(left * share, working, page)
    if pages <= 2 * SPARE_PAGES:
        raise ConfigurationError(
            f"{share:.0%} of the {left >> 20} MiB left beside the weights do not hold both a step, "
            f"which takes up to {working >> 20} MiB, and the keys and values of a sequence: raise "
            "memory_utilization, lower max_batch_tokens, or serve on a larger device"
        )
    limits = replace(limits, budget_bytes=left - pages * page)
    return PackedSetup(PagePool(shapes, pages, dtype, device), settings, limits)
