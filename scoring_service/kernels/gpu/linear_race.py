"""The exponential race straight from hidden states, for rows without filters: no logits stored.

As `linear.linear_statistics` folds tiles of logits into running sums, this folds them into the
running winner of `race`: a program takes BT rows and a chunk of columns, and leaves the chunk's
largest x, its least key relative to that, and the key's id. Filters need the row as a whole before
anything can win: rows that have them go through a tile of logits.

Numerics: products of the operands' own type, summed in fp32; keys as in `race`, moved from one
maximum to the next by a factor each, and compared over chunks as float64 logarithms. Words are the
reference's bit for bit. A row's result does not depend on how many rows there are.

Twin: `reference.draw` on the head's logits.

Legend: T rows, H hidden, V vocabulary, S chunks of columns.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from scoring_service.kernels.gpu.layout import by_row, rows_contiguous
from scoring_service.kernels.gpu.linear import CHUNK_COLUMNS, x_of_columns
from scoring_service.kernels.gpu.linear_head import BT, HeadShard, launch_options
from scoring_service.kernels.gpu.race import NO_ID, exponential

RACE_COLUMNS = 64
"""Columns of a tile: their words and keys need more registers than sums do."""


@triton.jit
def words_of_rows(first_id, seeds, sample_indices, positions, BT: tl.constexpr, BV: tl.constexpr):
    """uint32 [BT, BV]: words of BV consecutive ids from a multiple of 4 on, for rows of their own
    seeds.
    """
    # A counter is shared by four consecutive ids.
    counters = (first_id // 4 + tl.arange(0, BV // 4)).to(tl.uint32)
    none = tl.zeros((BT, BV // 4), tl.uint32)
    w0, w1, w2, w3 = tl.philox_impl(
        none + counters[None, :],
        none + positions.to(tl.uint32)[:, None],
        none + sample_indices.to(tl.uint32)[:, None],
        none,
        none + (seeds & 0xFFFFFFFF).to(tl.uint32)[:, None],
        none + ((seeds >> 32) & 0xFFFFFFFF).to(tl.uint32)[:, None],
        10,
    )
    return tl.reshape(tl.join(tl.join(w0, w2), tl.join(w1, w3)), (BT, BV))


@triton.jit(
    do_not_specialize=["rows"],
    do_not_specialize_on_alignment=[
        "temperatures_ptr", "seed_ptr", "sample_index_ptr", "position_ptr", "keys_ptr"
    ],
)  # fmt: skip
def linear_race(
    hidden_ptr,
    weight_ptr,
    bias_ptr,
    temperatures_ptr,
    seed_ptr,
    sample_index_ptr,
    position_ptr,
    maxima_ptr,
    keys_ptr,
    ids_ptr,
    rows,
    hidden_size,
    hidden_stride,
    weight_stride,
    first_id,
    shard,
    multiplier,
    soft_cap,
    BIASED: tl.constexpr,
    SCALED: tl.constexpr,
    CAPPED: tl.constexpr,
    UPCAST: tl.constexpr,
    CHUNK: tl.constexpr,
    BT: tl.constexpr,
    BV: tl.constexpr,
    BH: tl.constexpr,
):
    """Program (rows, chunk): the winner of BT rows among a chunk's tokens."""
    row = tl.program_id(0).to(tl.int64) * BT + tl.arange(0, BT)
    chunk = tl.program_id(1)
    there = row < rows
    temperature = tl.load(temperatures_ptr + row, mask=there, other=1.0)
    seeds = tl.load(seed_ptr + row, mask=there, other=0)
    sample_indices = tl.load(sample_index_ptr + row, mask=there, other=0)
    positions = tl.load(position_ptr + row, mask=there, other=0)
    top = tl.full((BT,), -float("inf"), tl.float32)
    least = tl.full((BT,), float("inf"), tl.float32)
    winner = tl.full((BT,), 0x7FFFFFFF, tl.int32)
    broken = tl.zeros((BT,), tl.int32)
    for start in range(0, CHUNK, BV):
        column = chunk * CHUNK + start + tl.arange(0, BV)
        inside = column < shard
        x = x_of_columns(
            hidden_ptr, weight_ptr, bias_ptr, row, there, column, inside, temperature, hidden_size,
            hidden_stride, weight_stride, multiplier, soft_cap, BIASED, SCALED, CAPPED, UPCAST,
            BT, BV, BH,
        )  # fmt: skip
        # A maximum may pass over NaN, and such a token's key is infinite.
        broken += tl.sum((x != x).to(tl.int32), axis=1)
        new_top = tl.maximum(top, tl.max(x, axis=1))
        safe = tl.where(new_top == -float("inf"), 0.0, new_top)
        words = words_of_rows(
            first_id + chunk * CHUNK + start, seeds, sample_indices, positions, BT, BV
        )
        # Nothing more than 26 nats below the best can win: see `race`.
        keys = exponential(words) * tl.exp(tl.minimum(safe[:, None] - x, 80.0))
        keys = tl.where(x > -float("inf"), keys, float("inf"))
        tile_least = tl.min(keys, axis=1)
        first = tl.where(keys == tile_least[:, None], (column + first_id)[None, :], 0x7FFFFFFF)
        # The key so far was relative to the old maximum. Equal keys stay with the lower id.
        least = least * tl.exp(tl.minimum(safe - top, 80.0))
        winner = tl.where(tile_least < least, tl.min(first, axis=1), winner)
        least = tl.minimum(least, tile_least)
        top = new_top
    place = row * tl.num_programs(1) + chunk
    top = tl.where(broken > 0, float("nan"), top)
    tl.store(maxima_ptr + place, top, mask=there)
    tl.store(keys_ptr + place, least, mask=there)
    tl.store(ids_ptr + place, winner, mask=there)


def chunk_winners(
    shard: HeadShard,
    hidden_T_H: Tensor,
    temperatures_T: Tensor,
    seeds_T: Tensor,
    sample_indices_T: Tensor,
    positions_T: Tensor,
) -> tuple[Tensor, Tensor]:
    """Best of each chunk of a shard: float64 log(E) - x and int32 id, both [T, S].

    The key of a chunk that has NaN among its x is NaN: the row is no distribution.

    Shards' results, side by side in the order of their ids, are those of the whole.

    Args:
        shard: the weight; its first id is a multiple of 4.
        hidden_T_H: of the weight's type.
        temperatures_T: float32.
        seeds_T: int64 of the seeds' 64 bits.
        sample_indices_T: int64.
        positions_T: int64.

    Raises:
        ValueError: the shard begins in the middle of a counter's four ids, or there is not one
            number a row.
    """
    if shard.first_id % 4:
        raise ValueError(f"a shard begins at a multiple of 4, not at id {shard.first_id}")
    rows, columns = len(hidden_T_H), shard.weight_V_H.shape[0]
    hidden_T_H = rows_contiguous(hidden_T_H)
    chunks = triton.cdiv(columns, CHUNK_COLUMNS)
    maxima, keys = torch.empty((2, rows, chunks), device=hidden_T_H.device)
    ids = torch.empty((rows, chunks), dtype=torch.int32, device=hidden_T_H.device)
    linear_race[(triton.cdiv(rows, BT), chunks)](
        hidden_T_H,
        *shard.pointers(),
        by_row(temperatures_T, rows, torch.float32),
        by_row(seeds_T, rows, torch.int64),
        by_row(sample_indices_T, rows, torch.int64),
        by_row(positions_T, rows, torch.int64),
        maxima,
        keys,
        ids,
        rows,
        hidden_T_H.shape[1],
        hidden_T_H.stride(0),
        shard.weight_V_H.stride(0),
        shard.first_id,
        columns,
        shard.multiplier,
        shard.soft_cap or 0.0,
        CHUNK=CHUNK_COLUMNS,
        BT=BT,
        BV=RACE_COLUMNS,
        **launch_options(shard),
    )
    return keys.double().log() - maxima.double(), ids


def winners(log_keys_T_S: Tensor, ids_T_S: Tensor) -> Tensor:
    """int64 [T]: the id of the least key, the lowest among equals; -1 where there is none, or where
    a key is NaN.
    """
    least_T = log_keys_T_S.amin(dim=1)
    ids_T = ids_T_S.masked_fill(log_keys_T_S != least_T[:, None], NO_ID).amin(dim=1).long()
    return ids_T.masked_fill(~least_T.isfinite(), -1)
