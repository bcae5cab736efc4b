"""Finds what truncation keeps of rows of x, by the launches of `truncation`."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import triton
from torch import Tensor
from torch.nn import functional

from scoring_service.kernels.gpu import truncation
from scoring_service.kernels.gpu.bracket import SAMPLE
from scoring_service.kernels.gpu.layout import by_row
from scoring_service.kernels.gpu.rows import BLOCK_COLUMNS
from scoring_service.kernels.gpu.search import MIN_KEY, PIVOTS, search_block
from scoring_service.kernels.gpu.statistics import GROUP_COLUMNS
from scoring_service.kernels.gpu.truncation import settle_support, shortlist, sweep

GATHERED = 4096
"""Tokens of groups that are looked at together."""

HOLDING_WARPS = 16
"""Of programs that hold thousands of tokens: with half of them registers would not do."""


@dataclass(frozen=True, slots=True)
class Support:
    """What truncation keeps of each row: keys above its pivot, and at the pivot its highest ids."""

    pivots_T: Tensor
    """int32: `rows.ordered` keys."""
    least_ids_T: Tensor
    """int32: the least id kept at the pivot."""
    log_kept_mass_T: Tensor
    """float64."""
    sizes_T: Tensor
    """int32."""
    lists_T_L: Tensor
    """int64: sort keys (`candidates.sort_key`) of tokens among which the whole support is."""
    listed_T: Tensor
    """int32: how many of them there are; -1 where the support is in no list."""


def find_support(
    x_T_V: Tensor,
    groups_T_G: Tensor,
    possible_T_S: Tensor,
    max_T: Tensor,
    logsumexp_T: Tensor,
    top_k: int | Tensor,
    top_p: float | Tensor,
    min_p: float | Tensor,
) -> Support:
    """The support of each row.

    Args:
        x_T_V: float32, bfloat16 or float16.
        groups_T_G: of its type, the maxima of groups of columns.
        possible_T_S: int32, tokens of blocks that are not at -inf.
        max_T: float32.
        logsumexp_T: float64.
        top_k: of all rows or integers [T]; 0 = off.
        top_p: of all rows or [T]; 1 = off.
        min_p: of all rows or [T]; 0 = off.

    Raises:
        ValueError: there is not one of them a row, or a top_k has fractions.
    """
    if x_T_V.shape[1] == 1:
        # The search loops over a constant then, which Triton 3.6 fails to compile.
        x_T_V = functional.pad(x_T_V, (0, 1), value=-math.inf)
    (rows, vocab), device = x_T_V.shape, max_T.device
    top_k_T = _per_row(top_k, rows, torch.int64, device)
    top_p_T = _per_row(top_p, rows, torch.float64, device)
    min_p_T = _per_row(min_p, rows, torch.float64, device)
    blocks, groups = triton.cdiv(vocab, BLOCK_COLUMNS), groups_T_G.shape[1]
    length, short = truncation.LIST, truncation.SHORT

    def empty(*shape: int, dtype: torch.dtype = torch.int32) -> Tensor:
        return torch.empty(shape, dtype=dtype, device=device)

    found = Support(
        pivots_T=empty(rows),
        least_ids_T=empty(rows),
        log_kept_mass_T=empty(rows, dtype=torch.float64),
        sizes_T=empty(rows),
        lists_T_L=empty(rows, length, dtype=torch.int64),
        listed_T=empty(rows),
    )
    answers = found.pivots_T, found.least_ids_T, found.log_kept_mass_T, found.sizes_T
    keys, state = empty(rows, short), empty(rows, truncation.STATE)
    sums, counts = empty(rows, 3, blocks, dtype=torch.int64), empty(rows, 2, blocks)
    shortlist[(rows,)](
        x_T_V, groups_T_G, possible_T_S, max_T, logsumexp_T, top_k_T, top_p_T, min_p_T, keys,
        found.lists_T_L, found.listed_T, state, *answers, x_T_V.stride(0), vocab, groups,
        possible_T_S.shape[1], MIN_KEY=MIN_KEY, LIST=length, SHORT=short, SAMPLE=SAMPLE,
        BLOCK=GATHERED, GROUP=GROUP_COLUMNS,
        GROUPS=min(truncation.MAX_GROUPS, triton.next_power_of_2(groups)),
        BLOCKS=triton.next_power_of_2(possible_T_S.shape[1]), STATE=truncation.STATE,
        num_warps=HOLDING_WARPS,
    )  # fmt: skip
    sweep[(rows, blocks)](
        x_T_V, max_T, state, found.lists_T_L, sums, counts, x_T_V.stride(0), vocab, LIST=length,
        STATE=truncation.STATE, BLOCK=BLOCK_COLUMNS, num_warps=8,
    )  # fmt: skip
    settle_support[(rows,)](
        x_T_V, max_T, logsumexp_T, top_k_T, top_p_T, state, found.lists_T_L, keys, sums, counts,
        *answers, x_T_V.stride(0), vocab, blocks, MIN_KEY=MIN_KEY, LIST=length, SHORT=short,
        BLOCK=search_block(vocab), BLOCKS=triton.next_power_of_2(blocks), PIVOTS=PIVOTS,
        STATE=truncation.STATE, num_warps=HOLDING_WARPS,
    )  # fmt: skip
    return found


def _per_row(value: float | Tensor, rows: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    if isinstance(value, Tensor):
        return by_row(value, rows, dtype)
    return torch.full((rows,), value, dtype=dtype, device=device)
