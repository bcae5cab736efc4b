"""Attention of one layer over a packed step: every segment and every sampled token in one launch.

A program takes a block of queries of one segment and one head of keys. It reads the keys of earlier
segments where they are kept, by the slots of their positions, and those of the segment itself among
the rows of the step: nothing is gathered, padded or masked in memory. Heads that share keys are
rows of one product, so that a sampled token's heads fill it.

A long chain of earlier keys is cut into parts, a program each, which leave partial results in fp32;
a second launch joins them in their order (`join_parts`). `kernels.key_parts` says which chains are
cut, and why. A layer whose window is no wider than a part is launched as if none were, and so is a
step without a long chain: nothing more than one launch of each size of blocks. A recorded step has
one number of programs while its contexts grow. They walk over a list of work items, whose length
lies in memory beside it: with 8 heads of keys 128 programs a head, as many as 50,000 tokens of one
sample have parts, and those that find no item end at once.

Numerics: products of the operands' own type, summed in fp32 (those of fp32 as three of tf32, which
are as good and compile sooner); softmax in fp32 as a running one, its weights
rounded to the values' type before their product. Blocks of keys begin at multiples of their size
from the first position and from the segment's own beginning, and parts at multiples of theirs from
the first position, whether a window begins inside or not: a row's bits depend on its own sequence
and seams alone, neither on its neighbours nor on how many programs there are.

Twin: `engine.packed.attention`'s products, and every model's own eager attention at load.

Legend: T rows, D width of keys, N work items.
"""

from __future__ import annotations

from dataclasses import dataclass

import triton
import triton.language as tl
from torch import Tensor

from scoring_service.kernels.gpu.attention_work import Work
from scoring_service.kernels.gpu.join_parts import JOINED, join_parts
from scoring_service.kernels.gpu.rows import tanh

WARPS, STAGES = 4, 2
"""Of a program: threads by 32, and blocks of keys on their way at a time in half precision."""


@triton.jit
def attended(
    q, keys_ptr, values_ptr, key_places, value_places, inside, seen, top, total, sums, scaling,
    softcap, CAPPED: tl.constexpr, UPCAST: tl.constexpr, D: tl.constexpr, DV: tl.constexpr,
    WIDTH: tl.constexpr, VALUE_WIDTH: tl.constexpr,
):  # fmt: skip
    """Folds a block of keys and values into running results.

    `key_places` and `value_places` [BN] say where keys and values begin, `inside` [BN] which are
    there, `seen` [BM, BN] who may look at them. `top` [BM] is the largest score in units of log 2,
    `total` the sum of weights relative to it, and `sums` [BM, VALUE_WIDTH] the weighted values.
    """
    inner = tl.arange(0, WIDTH)
    k = tl.load(
        keys_ptr + key_places[:, None] + inner[None, :],
        mask=inside[:, None] & (inner < D)[None, :],
        other=0.0,
    )
    if UPCAST:
        k = k.to(tl.float32)
    scores = tl.dot(q, tl.trans(k), input_precision="tf32x3") * scaling
    if CAPPED:
        scores = tanh(scores / softcap) * softcap
    scores = tl.where(seen, scores * 1.4426950408889634, -float("inf"))
    new_top = tl.maximum(top, tl.max(scores, axis=1))
    # Nothing seen yet: anything finite will do, its weights are 0.
    safe = tl.where(new_top == -float("inf"), 0.0, new_top)
    weights = tl.exp2(scores - safe[:, None])
    moved = tl.exp2(top - safe)
    column = tl.arange(0, VALUE_WIDTH)
    v = tl.load(
        values_ptr + value_places[:, None] + column[None, :],
        mask=inside[:, None] & (column < DV)[None, :],
        other=0.0,
    )
    total = total * moved + tl.sum(weights, axis=1)
    weights = weights.to(v.dtype)
    if UPCAST:
        weights = weights.to(tl.float32)
        v = v.to(tl.float32)
    sums = tl.dot(weights, v, sums * moved[:, None], input_precision="tf32x3")
    return new_top, total, sums


@triton.jit(do_not_specialize=["window", "whole"])
def packed_attention(
    query_ptr,
    key_ptr,
    value_ptr,
    kept_key_ptr,
    kept_value_ptr,
    sink_ptr,
    work_ptr,
    slots_ptr,
    output_ptr,
    sums_ptr,
    marks_ptr,
    query_head_stride,
    query_row_stride,
    key_head_stride,
    key_row_stride,
    value_head_stride,
    value_row_stride,
    kept_key_stride,
    kept_value_stride,
    output_stride,
    scaling,
    softcap,
    window,
    whole,
    WINDOWED: tl.constexpr,
    CAPPED: tl.constexpr,
    SINKS: tl.constexpr,
    UPCAST: tl.constexpr,
    GROUP: tl.constexpr,
    D: tl.constexpr,
    DV: tl.constexpr,
    WIDTH: tl.constexpr,
    VALUE_WIDTH: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
):
    """Program (p, head of keys): work item p, and every other one as many programs behind it.

    An item is BM queries of a segment, those of a group side by side, and a part of the positions
    before it. `work_ptr` begins with how many there are. Where `whole` is not 0, no chain is cut:
    there is a program for each of the items that look at segments themselves, which come first.
    """
    head = tl.program_id(1).to(tl.int64)
    count = tl.where(whole != 0, tl.num_programs(0), tl.load(work_ptr).to(tl.int32))
    # What is hoisted out of this loop would hold registers throughout.
    programs = tl.num_programs(0)
    for number in tl.range(tl.program_id(0), count, programs, disable_licm=True):
        item = work_ptr + (1 + number) * 8
        start = tl.load(item)
        tokens = tl.load(item + 1).to(tl.int32)
        first = tl.load(item + 2).to(tl.int32)
        own_slots = slots_ptr + tl.load(item + 3)
        first_query = tl.load(item + 4).to(tl.int32)
        part_begin = tl.where(whole != 0, 0, tl.load(item + 5).to(tl.int32))
        part = tl.where(whole != 0, first, tl.load(item + 6).to(tl.int32))
        is_last = part_begin + part >= first
        query = first_query + tl.arange(0, BM)
        token = query // GROUP
        own_head = head * GROUP + query % GROUP
        there = token < tokens
        inner = tl.arange(0, WIDTH)
        q = tl.load(
            query_ptr
            + own_head[:, None] * query_head_stride
            + (start + token)[:, None] * query_row_stride
            + inner[None, :],
            mask=there[:, None] & (inner < D)[None, :],
            other=0.0,
        )
        if UPCAST:
            q = q.to(tl.float32)
        top = tl.full((BM,), -float("inf"), tl.float32)
        total = tl.zeros((BM,), tl.float32)
        if SINKS:
            # A score without a value, of the last part alone.
            sink = tl.load(sink_ptr + own_head, mask=there, other=0.0) * 1.4426950408889634
            top = tl.where(is_last, sink, top)
            total = tl.where(is_last, 1.0, total)
        sums = tl.zeros((BM, VALUE_WIDTH), tl.float32)

        begin = part_begin
        end = tl.minimum(part_begin + part, first)
        if WINDOWED:
            oldest = tl.maximum(first + first_query // GROUP - window + 1, 0)
            begin = tl.maximum(begin, oldest // BN * BN)
        is_seen = is_last | (begin < end)
        kept_keys = kept_key_ptr + head * kept_key_stride
        kept_values = kept_value_ptr + head * kept_value_stride
        for at in range(begin, end, BN):
            position = at + tl.arange(0, BN)
            inside = position < end
            slots = tl.load(own_slots + position, mask=inside, other=0).to(tl.int64)
            seen = inside[None, :] & there[:, None]
            if WINDOWED:
                seen = seen & (position[None, :] > (first + token)[:, None] - window)
            top, total, sums = attended(
                q, kept_keys, kept_values, slots * D, slots * DV, inside, seen, top, total, sums,
                scaling, softcap, CAPPED, UPCAST, D, DV, WIDTH, VALUE_WIDTH,
            )  # fmt: skip

        # Read again: held since, it takes registers of which four programs leave a processor none.
        start = tl.load(item, volatile=True)
        own_begin = 0
        if WINDOWED:
            own_begin = tl.maximum(first_query // GROUP - window + 1, 0) // BN * BN
        own_end = tl.minimum(tokens, (first_query + BM - 1) // GROUP + 1)
        own_end = tl.where(is_last, own_end, 0)
        own_keys = key_ptr + head * key_head_stride
        own_values = value_ptr + head * value_head_stride
        for at in range(own_begin, own_end, BN):
            other = at + tl.arange(0, BN)
            inside = other < tokens
            row = start + other
            seen = inside[None, :] & (other[None, :] <= token[:, None])
            if WINDOWED:
                seen = seen & (other[None, :] > token[:, None] - window)
            top, total, sums = attended(
                q, own_keys, own_values, row * key_row_stride, row * value_row_stride, inside,
                seen, top, total, sums, scaling, softcap, CAPPED, UPCAST, D, DV, WIDTH,
                VALUE_WIDTH,
            )  # fmt: skip

        column = tl.arange(0, VALUE_WIDTH)
        place = tl.where(whole != 0, -1, tl.load(item + 7))
        if place < 0:
            tl.store(
                output_ptr
                + (start + token)[:, None] * output_stride
                + own_head[:, None] * DV
                + column[None, :],
                (sums / total[:, None]).to(output_ptr.dtype.element_ty),
                mask=there[:, None] & (column < DV)[None, :],
            )
        else:
            queries = tl.minimum(tokens * GROUP - first_query, BM)
            partial = place * tl.num_programs(1) + head * queries + tl.arange(0, BM)
            written = there & is_seen
            tl.store(marks_ptr + 2 * partial, top, mask=written)
            tl.store(marks_ptr + 2 * partial + 1, total, mask=written)
            tl.store(
                sums_ptr + partial[:, None] * DV + column[None, :],
                sums,
                mask=written[:, None] & (column < DV)[None, :],
            )


@dataclass(frozen=True, slots=True)
class Scores:
    """What a layer makes of its scores."""

    scaling: float
    window: int | None
    softcap: float | None
    sinks: Tensor | None
    """float32 [heads]."""


def attend(
    queries: Tensor,
    keys: Tensor,
    values: Tensor,
    kept: tuple[Tensor, Tensor],
    work: Work,
    scores: Scores,
    output_T: Tensor,
) -> None:
    """Attention of a layer.

    Args:
        queries: [heads, T, D]; elements of a head side by side, as in the two others.
        keys: [kv heads, T, D].
        values: [kv heads, T, Dv].
        kept: keys [kv heads, slots, D] and values [kv heads, slots, Dv] of earlier steps and of
            this one's segments that others continue.
        work: the step.
        scores: what becomes of scores.
        output_T: [T, heads, Dv], written where there is a token.
    """
    if not (queries.stride(2) == keys.stride(2) == values.stride(2) == 1):
        queries, keys, values = queries.contiguous(), keys.contiguous(), values.contiguous()
    kept_keys, kept_values = kept
    kv_heads = keys.shape[0]
    window = scores.window or 0
    asked = {"WINDOWED": scores.window is not None, "GROUP": queries.shape[0] // kv_heads}
    tile = tile_of(queries.shape[2], values.shape[2], queries.element_size())
    partials = work.partials
    for items in work.items:
        block, most, blocks = items.kind
        joins = items.is_cut and (scores.window is None or window > work.least_part)
        packed_attention[(items.programs if joins else blocks, kv_heads)](
            queries,
            keys,
            values,
            kept_keys,
            kept_values,
            queries if scores.sinks is None else scores.sinks,
            items.numbers,
            work.slots,
            output_T,
            partials.sums,
            partials.marks,
            queries.stride(0),
            queries.stride(1),
            keys.stride(0),
            keys.stride(1),
            values.stride(0),
            values.stride(1),
            kept_keys.stride(0),
            kept_values.stride(0),
            output_T.stride(0),
            scores.scaling,
            scores.softcap or 0.0,
            window,
            int(not joins),
            CAPPED=scores.softcap is not None,
            SINKS=scores.sinks is not None,
            UPCAST=not queries.is_cuda,
            BM=block,
            num_warps=WARPS,
            num_stages=STAGES if queries.element_size() < 4 else 1,
            **asked,
            **tile,
        )
        if joins:
            join_parts[(blocks, most, kv_heads)](
                items.numbers,
                partials.sums,
                partials.marks,
                output_T,
                output_T.stride(0),
                window,
                DV=tile["DV"],
                VALUE_WIDTH=tile["VALUE_WIDTH"],
                BM=block,
                PARTS=JOINED,
                **asked,
            )


def tile_of(width: int, value_width: int, element_size: int) -> dict[str, int]:
    """What the kernel is compiled for: widths, padded to powers of two, and keys of a block."""
    padded = max(16, triton.next_power_of_2(width))
    padded_values = max(16, triton.next_power_of_2(value_width))
    # Queries beside the blocks of keys on their way: below 100 KiB for heads up to 256 wide in half
    # precision and up to 128 in fp32, which is for probes.
    many = element_size < 4 and max(padded, padded_values) <= 128
    return {
        "D": width,
        "DV": value_width,
        "WIDTH": padded,
        "VALUE_WIDTH": padded_values,
        "BN": 64 if many else 32,
    }
