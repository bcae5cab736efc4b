"""Partial results of rows by blocks of columns, and what they combine to.

Legend: T rows, S blocks of columns.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import torch
import triton
from torch import Tensor

from scoring_service.kernels.gpu.statistics import combine


@dataclass(frozen=True, slots=True)
class RowStatistics:
    """Numbers of rows that need every column."""

    max_T: Tensor
    """float32: the largest x."""
    logsumexp_T: Tensor
    """float64."""
    entropy_T: Tensor
    """float32, nats."""
    rank_T: Tensor
    """int32, of the targets."""
    best_T: Tensor
    """int32: the lowest id of the largest x."""


@dataclass(frozen=True, slots=True)
class RowPartials:
    """What blocks of columns leave of rows, [T, S] each."""

    maxima: Tensor
    """float32: m, the largest x of the block."""
    sums: Tensor
    """float32: sum of exp(x - m)."""
    weighted: Tensor
    """float32: sum of exp(x - m) * (x - m)."""
    above: Tensor
    """int32: tokens before the target."""
    best: Tensor
    """int32: the lowest id of the largest x."""

    @classmethod
    def empty(cls, rows: int, blocks: int, device: torch.device) -> RowPartials:
        """Room for the results of so many blocks."""
        floats = torch.empty((3, rows, blocks), device=device)
        integers = torch.empty((2, rows, blocks), device=device, dtype=torch.int32)
        return cls(*floats.unbind(), *integers.unbind())

    def combine(self) -> RowStatistics:
        """The rows' numbers, the same bits however the blocks were spread over devices."""
        rows, blocks = self.maxima.shape
        device = self.maxima.device
        found = RowStatistics(
            max_T=torch.empty(rows, device=device),
            logsumexp_T=torch.empty(rows, device=device, dtype=torch.float64),
            entropy_T=torch.empty(rows, device=device),
            rank_T=torch.empty(rows, device=device, dtype=torch.int32),
            best_T=torch.empty(rows, device=device, dtype=torch.int32),
        )
        combine[(rows,)](
            *(getattr(self, field.name) for field in fields(self)),
            *(getattr(found, field.name) for field in fields(found)),
            blocks,
            SUMS_ONLY=False,
            BLOCKS=triton.next_power_of_2(blocks),
            num_warps=1,
        )
        return found


def join_shards(shards: Sequence[RowPartials]) -> RowPartials:
    """Partial results of vocabulary shards, in the order of their ids, as those of the whole.

    Shards that begin at multiples of a block (`linear.CHUNK_COLUMNS` of the fused kernel,
    `rows.BLOCK_COLUMNS` of tiles) combine to the bits of the unsplit head; of others the sums are
    grouped otherwise, and as good.
    """
    names = [field.name for field in fields(RowPartials)]
    joined = {name: torch.cat([getattr(s, name) for s in shards], dim=1) for name in names}
    return RowPartials(**joined)


def logsumexp_of_blocks(maxima_T_S: Tensor, sums_T_S: Tensor) -> Tensor:
    """float64 [T] of blocks' maxima and sums of exp(x - maximum), float32 [T, S]."""
    rows, blocks = maxima_T_S.shape
    result_T = torch.empty(rows, dtype=torch.float64, device=maxima_T_S.device)
    unused = maxima_T_S
    combine[(rows,)](
        maxima_T_S, sums_T_S, unused, unused, unused, unused, result_T, unused, unused, unused,
        blocks, SUMS_ONLY=True, BLOCKS=triton.next_power_of_2(blocks), num_warps=1,
    )  # fmt: skip
    return result_T
