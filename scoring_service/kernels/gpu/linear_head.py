"""A head's weight, or a shard of it, and the partial results of rows under it.

Two routes to the same partial results: the fused kernel, and a library's matrix product into a tile
that `block_statistics` reads while it is still in the cache. Ranks of a tensor-parallel group:

    x_T = all_reduce_max(logits_at(shard, ...)[1])      # only one rank owns each target
    mine = fused_partials(shard, ..., x_T)
    statistics = join_shards(all_gather(mine)).combine()
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
from torch import Tensor

from scoring_service.kernels.gpu.layout import by_row, rows_contiguous
from scoring_service.kernels.gpu.linear import CHUNK_COLUMNS, linear_at, linear_statistics
from scoring_service.kernels.gpu.partials import RowPartials
from scoring_service.kernels.gpu.rows import BLOCK_COLUMNS
from scoring_service.kernels.gpu.statistics import GROUP_COLUMNS, block_statistics
from scoring_service.kernels.linear_logprobs import check_columns

BT = 64
"""Rows of a tile of the fused kernel: the same for one row as for thousands, so that a row's bits
do not depend on how many there are. Few rows wait for the weight, not for arithmetic."""

_TILE_ROWS = 2048
"""Rows of a tile of the other route, 32 MiB with its columns: under 1 % of the full logits at 8,192
rows of 151,936, and small enough for the second-level cache."""


@dataclass(frozen=True, slots=True)
class HeadShard:
    """Rows of a head's weight and what the model does to the logits."""

    weight_V_H: Tensor
    """Columns side by side."""
    bias_V: Tensor | None = None
    multiplier: float = 1.0
    soft_cap: float | None = None
    first_id: int = 0
    """Token id of the weight's first row."""

    def __post_init__(self) -> None:
        """Raises ValueError where the columns of the weight are not side by side."""
        check_columns(self.weight_V_H)

    def pointers(self) -> tuple[Tensor, Tensor]:
        """Weight and bias as kernels take them; the weight again where there is no bias."""
        bias_V = self.bias_V
        return self.weight_V_H, self.weight_V_H if bias_V is None else bias_V.contiguous()


def logits_at(
    shard: HeadShard, hidden_T_H: Tensor, temperatures_T: Tensor, ids_T_C: Tensor
) -> tuple[Tensor, Tensor]:
    """Logits and x at given ids, float32 [T, C]; -inf where the id is another shard's.

    Args:
        shard: the weight.
        hidden_T_H: of the weight's type.
        temperatures_T: float32.
        ids_T_C: int64.

    Raises:
        ValueError: there is not one temperature and one list of ids a row.
    """
    rows, candidates = ids_T_C.shape
    temperatures_T = by_row(temperatures_T, rows, torch.float32)
    hidden_T_H = rows_contiguous(hidden_T_H)
    if len(hidden_T_H) != rows:
        raise ValueError(f"{rows} lists of ids for {len(hidden_T_H)} rows")
    logits_T_C, x_T_C = torch.empty((2, rows, candidates), device=hidden_T_H.device)
    linear_at[(triton.cdiv(rows, BT) * candidates,)](
        hidden_T_H,
        *shard.pointers(),
        temperatures_T,
        ids_T_C.long().contiguous(),
        logits_T_C,
        x_T_C,
        rows,
        hidden_T_H.shape[1],
        hidden_T_H.stride(0),
        shard.weight_V_H.stride(0),
        shard.first_id,
        shard.weight_V_H.shape[0],
        candidates,
        shard.multiplier,
        shard.soft_cap or 0.0,
        BT=BT,
        **launch_options(shard),
    )
    return logits_T_C, x_T_C


def fused_partials(
    shard: HeadShard,
    hidden_T_H: Tensor,
    temperatures_T: Tensor,
    targets_T: Tensor,
    target_x_T: Tensor,
    token_id_limit: int,
) -> RowPartials:
    """Partial results of rows under a shard; no logits are stored.

    Args:
        shard: the weight.
        hidden_T_H: of the weight's type.
        temperatures_T: float32.
        targets_T: int64, of the whole vocabulary.
        target_x_T: their x, as `logits_at` has it.
        token_id_limit: ids that ranks count.

    Raises:
        ValueError: there is not one temperature, target and x a row.
    """
    rows, hidden_size = hidden_T_H.shape
    hidden_T_H = rows_contiguous(hidden_T_H)
    columns = shard.weight_V_H.shape[0]
    chunks = triton.cdiv(columns, CHUNK_COLUMNS)
    partials = RowPartials.empty(rows, chunks, hidden_T_H.device)
    linear_statistics[(triton.cdiv(rows, BT), chunks)](
        hidden_T_H,
        *shard.pointers(),
        by_row(temperatures_T, rows, torch.float32),
        by_row(targets_T, rows, torch.int64),
        by_row(target_x_T, rows, torch.float32),
        partials.maxima,
        partials.sums,
        partials.weighted,
        partials.above,
        partials.best,
        rows,
        hidden_size,
        hidden_T_H.stride(0),
        shard.weight_V_H.stride(0),
        shard.first_id,
        columns,
        token_id_limit,
        shard.multiplier,
        shard.soft_cap or 0.0,
        CHUNK=CHUNK_COLUMNS,
        BT=BT,
        BV=tile_columns(shard.weight_V_H.element_size()),
        **launch_options(shard),
    )
    return partials


def tiled_partials(
    shard: HeadShard,
    hidden_T_H: Tensor,
    temperatures_T: Tensor,
    targets_T: Tensor,
    target_logits_T: Tensor,
    token_id_limit: int,
) -> RowPartials:
    """The same from tiles of BLOCK_COLUMNS columns that the library's matrix product makes.

    Ranks compare with a target's logit from `logits_at`, whose sums may be a rounding away from the
    library's: of tokens that close to the target, any may count as before it.

    Raises:
        ValueError: there is not one temperature, target and logit a row.
    """
    rows = hidden_T_H.shape[0]
    temperatures_T = by_row(temperatures_T, rows, torch.float32)
    targets_T = by_row(targets_T, rows, torch.int64)
    target_logits_T = by_row(target_logits_T, rows, torch.float32)
    columns = shard.weight_V_H.shape[0]
    blocks = triton.cdiv(columns, BLOCK_COLUMNS)
    partials = RowPartials.empty(rows, blocks, hidden_T_H.device)
    for start in range(0, rows, _TILE_ROWS):
        part = slice(start, min(start + _TILE_ROWS, rows))
        for block in range(blocks):
            ids = slice(block * BLOCK_COLUMNS, (block + 1) * BLOCK_COLUMNS)
            logits_T_V = _product(hidden_T_H[part], shard.weight_V_H[ids])
            if shard.bias_V is not None:
                logits_T_V += shard.bias_V[ids]
            block_statistics[(part.stop - part.start, 1)](
                logits_T_V,
                temperatures_T[part],
                targets_T[part],
                target_logits_T[part],
                partials.maxima[part],
                partials.sums[part],
                partials.weighted[part],
                partials.above[part],
                partials.best[part],
                logits_T_V,
                logits_T_V,
                logits_T_V,
                logits_T_V.stride(0),
                0,
                logits_T_V.shape[1],
                shard.first_id + ids.start,
                token_id_limit,
                blocks,
                block,
                0,
                shard.multiplier,
                shard.soft_cap or 0.0,
                SCALED=shard.multiplier != 1.0,
                CAPPED=shard.soft_cap is not None,
                TEMPERED=True,
                TARGETED=True,
                STORED=False,
                GROUPED=False,
                COUNTED=False,
                BLOCK=BLOCK_COLUMNS,
                GROUP=GROUP_COLUMNS,
                num_warps=8,
            )
            del logits_T_V  # before the next one is made
    return partials


def _product(hidden_T_H: Tensor, weight_V_H: Tensor) -> Tensor:
    """float32 [T, V]; half-precision factors are multiplied into fp32 without copies of them."""
    if hidden_T_H.is_cuda and hidden_T_H.dtype != torch.float32:
        return torch.mm(hidden_T_H, weight_V_H.t(), out_dtype=torch.float32)
    return torch.mm(hidden_T_H.float(), weight_V_H.float().t())


def launch_options(shard: HeadShard) -> dict[str, bool | int]:
    """What a kernel on a shard is compiled for, and how many tiles are on their way at a time."""
    weight = shard.weight_V_H
    major = torch.cuda.get_device_capability(weight.device)[0] if weight.is_cuda else 0
    return {
        "BIASED": shard.bias_V is not None,
        "SCALED": shard.multiplier != 1.0,
        "CAPPED": shard.soft_cap is not None,
        "UPCAST": not weight.is_cuda,
        "BH": inner_columns(weight.element_size(), major),
        "num_warps": 8,
        "num_stages": 3,
    }


def inner_columns(element_size: int, major: int) -> int:
    """Inner columns of a tile: 128 bytes of them.

    On Blackwell (compute capability 10) 64 bytes of half precision: with more,
    `linear_statistics` spills registers there.
    """
    return 64 // element_size if element_size < 4 and major >= 10 else 128 // element_size


def tile_columns(element_size: int) -> int:
    """Columns of a tile of the fused kernel: more of them spill registers."""
    return 64 if element_size == 4 else 128
