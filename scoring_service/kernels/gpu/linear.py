"""Fully fused linear log-prob: hidden states times the head's weight, and no logits stored.

Program (rows, chunk of columns) multiplies its rows with a tile of the weight at a time and folds
each tile of logits into the row's running partial results, which `statistics.combine` ends. For few
rows, little memory, or bits that do not depend on how many rows there are: a row's sums are split
by V and H alone. Many rows go faster through a library's matrix product and `block_statistics`.

Numerics: products of the operands' own type, summed in fp32; then as in `statistics`. The targets'
logits come of the same product in the same order, so that ranks are exact.

Legend: T rows, H hidden, V vocabulary, S chunks of columns, C candidates.
"""

from __future__ import annotations

import triton
import triton.language as tl

from scoring_service.kernels.gpu.rows import finished
from scoring_service.kernels.gpu.statistics import PARTIAL_POINTERS

CHUNK_COLUMNS = 1024
"""Columns that one program folds."""


@triton.jit
def product(
    hidden_ptr,
    weight_ptr,
    row_there,
    column_there,
    hidden_size,
    UPCAST: tl.constexpr,
    BT: tl.constexpr,
    BV: tl.constexpr,
    BH: tl.constexpr,
):
    """fp32 [BT, BV]: rows at hidden_ptr [BT] times weight rows at weight_ptr [BV].

    UPCAST multiplies in fp32, for the interpreter, which has no products of narrow types; products
    of two narrow numbers are exact in fp32, so it changes no more than the order of addition.
    """
    total = tl.zeros((BT, BV), tl.float32)
    for start in range(0, hidden_size, BH):
        inner = start + tl.arange(0, BH)
        inside = inner < hidden_size
        a = tl.load(
            hidden_ptr[:, None] + inner[None, :],
            mask=row_there[:, None] & inside[None, :],
            other=0.0,
        )
        b = tl.load(
            weight_ptr[:, None] + inner[None, :],
            mask=column_there[:, None] & inside[None, :],
            other=0.0,
        )
        if UPCAST:
            a = a.to(tl.float32)
            b = b.to(tl.float32)
        total = tl.dot(a, tl.trans(b), total, input_precision="ieee")
    return total


@triton.jit
def x_of_columns(
    hidden_ptr,
    weight_ptr,
    bias_ptr,
    row,
    row_there,
    column,
    column_there,
    temperature,
    hidden_size,
    hidden_stride,
    weight_stride,
    multiplier,
    soft_cap,
    BIASED: tl.constexpr,
    SCALED: tl.constexpr,
    CAPPED: tl.constexpr,
    UPCAST: tl.constexpr,
    BT: tl.constexpr,
    BV: tl.constexpr,
    BH: tl.constexpr,
):
    """fp32 [BT, BV]: x of rows at columns of the weight, -inf where there is no column."""
    logits = product(
        hidden_ptr + row * hidden_stride,
        weight_ptr + column.to(tl.int64) * weight_stride,
        row_there,
        column_there,
        hidden_size,
        UPCAST,
        BT,
        BV,
        BH,
    )
    if BIASED:
        bias = tl.load(bias_ptr + column, mask=column_there, other=0.0)
        logits += bias.to(tl.float32)[None, :]
    x = finished(logits, multiplier, soft_cap, temperature[:, None], SCALED, CAPPED)
    return tl.where(column_there[None, :], x, -float("inf"))


@triton.jit(
    do_not_specialize=["rows", "candidates"],
    do_not_specialize_on_alignment=["temperatures_ptr", "ids_ptr", "x_ptr"],
)
def linear_at(
    hidden_ptr,
    weight_ptr,
    bias_ptr,
    temperatures_ptr,
    ids_ptr,
    logits_ptr,
    x_ptr,
    rows,
    hidden_size,
    hidden_stride,
    weight_stride,
    first_id,
    shard,
    candidates,
    multiplier,
    soft_cap,
    BIASED: tl.constexpr,
    SCALED: tl.constexpr,
    CAPPED: tl.constexpr,
    UPCAST: tl.constexpr,
    BT: tl.constexpr,
    BH: tl.constexpr,
):
    """Program (rows * candidates): logits and x at one id of each row, -inf outside the shard.

    The diagonal of a tile whose columns are the rows' own ids: the same products as
    `linear_statistics`, added in the same order.
    """
    index = tl.arange(0, BT)
    # One axis of programs for both: the others end at 65,535.
    row = (tl.program_id(0) // candidates).to(tl.int64) * BT + index
    there = row < rows
    place = row * candidates + tl.program_id(0) % candidates
    column = tl.load(ids_ptr + place, mask=there, other=-1) - first_id
    ours = (column >= 0) & (column < shard)
    column = tl.where(ours, column, 0)
    whole = product(
        hidden_ptr + row * hidden_stride,
        weight_ptr + column * weight_stride,
        there,
        ours,
        hidden_size,
        UPCAST,
        BT,
        BT,
        BH,
    )
    logits = tl.sum(tl.where(index[:, None] == index[None, :], whole, 0.0), axis=1)
    if BIASED:
        logits += tl.load(bias_ptr + column, mask=ours, other=0.0).to(tl.float32)
    temperature = tl.load(temperatures_ptr + row, mask=there, other=1.0)
    x = finished(logits, multiplier, soft_cap, temperature, SCALED, CAPPED)
    tl.store(logits_ptr + place, tl.where(ours, logits, -float("inf")), mask=there)
    tl.store(x_ptr + place, tl.where(ours, x, -float("inf")), mask=there)


@triton.jit(
    do_not_specialize=["rows", "limit"],
    do_not_specialize_on_alignment=[
        "temperatures_ptr", "targets_ptr", "target_x_ptr", *PARTIAL_POINTERS
    ],
)  # fmt: skip
def linear_statistics(
    hidden_ptr,
    weight_ptr,
    bias_ptr,
    temperatures_ptr,
    targets_ptr,
    target_x_ptr,
    maxima_ptr,
    sums_ptr,
    weighted_ptr,
    above_ptr,
    best_ptr,
    rows,
    hidden_size,
    hidden_stride,
    weight_stride,
    first_id,
    shard,
    limit,
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
    """Program (rows, chunk): the partial results of `partials.RowPartials` for BT rows."""
    row = tl.program_id(0).to(tl.int64) * BT + tl.arange(0, BT)
    chunk = tl.program_id(1)
    there = row < rows
    temperature = tl.load(temperatures_ptr + row, mask=there, other=1.0)
    target = tl.load(targets_ptr + row, mask=there, other=0).to(tl.int32)
    target_x = tl.load(target_x_ptr + row, mask=there, other=0.0)
    top = tl.full((BT,), -float("inf"), tl.float32)
    sums = tl.zeros((BT,), tl.float32)
    weighted = tl.zeros((BT,), tl.float32)
    above = tl.zeros((BT,), tl.int32)
    best = tl.full((BT,), 0x7FFFFFFF, tl.int32)
    for start in range(0, CHUNK, BV):
        column = chunk * CHUNK + start + tl.arange(0, BV)
        inside = column < shard
        x = x_of_columns(
            hidden_ptr, weight_ptr, bias_ptr, row, there, column, inside, temperature, hidden_size,
            hidden_stride, weight_stride, multiplier, soft_cap, BIASED, SCALED, CAPPED, UPCAST,
            BT, BV, BH,
        )  # fmt: skip
        ids = column + first_id
        before = (x > target_x[:, None]) | (
            (x == target_x[:, None]) & (ids[None, :] < target[:, None])
        )
        before = before & (inside & (ids < limit))[None, :] & (ids[None, :] != target[:, None])
        above += tl.sum(before.to(tl.int32), axis=1)

        tile_top = tl.max(x, axis=1)
        tile_best = tl.min(tl.where(x == tile_top[:, None], ids[None, :], 0x7FFFFFFF), axis=1)
        best = tl.where(tile_top > top, tile_best, best)
        new_top = tl.maximum(top, tile_top)
        safe = tl.where(new_top == -float("inf"), 0.0, new_top)
        # What was summed relative to the old maximum moves to the new one.
        step = tl.maximum(top - safe, -1e30)
        factor = tl.exp(step)
        e = tl.exp(x - safe[:, None])
        terms = e * tl.maximum(x - safe[:, None], -1e30)
        weighted = (weighted + step * sums) * factor + tl.sum(terms, axis=1)
        sums = sums * factor + tl.sum(e, axis=1)
        top = new_top
    place = row * tl.num_programs(1) + chunk
    tl.store(maxima_ptr + place, top, mask=there)
    tl.store(sums_ptr + place, sums, mask=there)
    tl.store(weighted_ptr + place, weighted, mask=there)
    tl.store(above_ptr + place, above, mask=there)
    tl.store(best_ptr + place, best, mask=there)
