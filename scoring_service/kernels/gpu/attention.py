"""Attention of one layer over a packed step: every segment and every sampled token in one launch.

A program takes a block of queries of one segment and one head of keys. It reads the keys of earlier
segments where they are kept, by the slots of their positions, and those of the segment itself among
the rows of the step: nothing is gathered, padded or masked in memory. Heads that share keys are
rows of one product, so that a sampled token's heads fill it.

Numerics: products of the operands' own type, summed in fp32 (those of fp32 as three of tf32, which
are as good and compile sooner); softmax in fp32 as a running one, its weights
rounded to the values' type before their product. Blocks of keys begin at multiples of their size
from the first position and from the segment's own beginning: a row's bits depend on its own
sequence and seams alone.

Twin: `engine.packed.attention`'s products, and every model's own eager attention at load.

Legend: T rows, D width of keys, N work items.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
import triton
import triton.language as tl
from torch import Tensor

from scoring_service.kernels.gpu.rows import tanh
from scoring_service.kernels.transfer import copy_async, to_device_async

FEW_QUERIES = 16
"""Queries of a block of sampled tokens: what a matrix unit takes at least."""

MANY_QUERIES = 64
"""Queries of a block of a segment."""

WARPS, STAGES = 4, 2
"""Of a program: threads by 32, and blocks of keys on their way at a time in half precision."""

WORK_FIELDS = 5
"""Numbers of a work item: first row of the segment, its tokens, position of the first, where the
slots of earlier positions begin, and the first query of the block."""


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


@triton.jit(do_not_specialize=["window"])
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
    """Program (work item, head of keys): BM queries of a segment, those of a group side by side."""
    item = work_ptr + tl.program_id(0) * 5
    head = tl.program_id(1).to(tl.int64)
    start = tl.load(item)
    tokens = tl.load(item + 1).to(tl.int32)
    first = tl.load(item + 2).to(tl.int32)
    slots_ptr += tl.load(item + 3)
    first_query = tl.load(item + 4).to(tl.int32)
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
        # A score without a value.
        top = tl.load(sink_ptr + own_head, mask=there, other=0.0) * 1.4426950408889634
        total += 1.0
    sums = tl.zeros((BM, VALUE_WIDTH), tl.float32)

    begin = 0
    if WINDOWED:
        begin = tl.maximum(first + first_query // GROUP - window + 1, 0) // BN * BN
    kept_keys = kept_key_ptr + head * kept_key_stride
    kept_values = kept_value_ptr + head * kept_value_stride
    for at in range(begin, first, BN):
        position = at + tl.arange(0, BN)
        inside = position < first
        slots = tl.load(slots_ptr + position, mask=inside, other=0).to(tl.int64)
        seen = inside[None, :] & there[:, None]
        if WINDOWED:
            seen = seen & (position[None, :] > (first + token)[:, None] - window)
        top, total, sums = attended(
            q, kept_keys, kept_values, slots * D, slots * DV, inside, seen, top, total, sums,
            scaling, softcap, CAPPED, UPCAST, D, DV, WIDTH, VALUE_WIDTH,
        )  # fmt: skip

    begin = 0
    if WINDOWED:
        begin = tl.maximum(first_query // GROUP - window + 1, 0) // BN * BN
    end = tl.minimum(tokens, (first_query + BM - 1) // GROUP + 1)
    own_keys = key_ptr + head * key_head_stride
    own_values = value_ptr + head * value_head_stride
    for at in range(begin, end, BN):
        other = at + tl.arange(0, BN)
        inside = other < tokens
        row = start + other
        seen = inside[None, :] & (other[None, :] <= token[:, None])
        if WINDOWED:
            seen = seen & (other[None, :] > token[:, None] - window)
        top, total, sums = attended(
            q, own_keys, own_values, row * key_row_stride, row * value_row_stride, inside, seen,
            top, total, sums, scaling, softcap, CAPPED, UPCAST, D, DV, WIDTH, VALUE_WIDTH,
        )  # fmt: skip

    column = tl.arange(0, VALUE_WIDTH)
    tl.store(
        output_ptr
        + (start + token)[:, None] * output_stride
        + own_head[:, None] * DV
        + column[None, :],
        (sums / total[:, None]).to(output_ptr.dtype.element_ty),
        mask=there[:, None] & (column < DV)[None, :],
    )


SlotArray = npt.NDArray[np.int64]

SegmentPlace = tuple[int, int, int, SlotArray]
"""First row, tokens, position of the first, and slots of every position before it."""


@dataclass(frozen=True, slots=True)
class Work:
    """A step's segments and sampled tokens as work items, on the device."""

    many_N_5: Tensor
    """int64: blocks of MANY_QUERIES queries."""
    few_N_5: Tensor
    """int64: blocks of FEW_QUERIES queries, of what has no more than so many."""
    slots: Tensor
    """int32: where the keys of earlier positions are kept, one segment's after another's."""

    def refill(self, segments: Sequence[SegmentPlace], group: int, dtype: torch.dtype) -> None:
        """Becomes another step, of as many segments of as many tokens, where it lies.

        Args:
            segments: see `work_of`.
            group: heads that share keys.
            dtype: of the queries.

        Raises:
            ValueError: the step has other blocks, or more slots than there is room for.
        """
        many_N_5, few_N_5, slots = _listed(segments, group, dtype)
        if many_N_5.shape != self.many_N_5.shape or few_N_5.shape != self.few_N_5.shape:
            raise ValueError("another step in the same place has to have the same blocks")
        _copy_slots(slots, self.slots)
        copy_async(many_N_5, self.many_N_5)
        copy_async(few_N_5, self.few_N_5)


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
    heads, kv_heads = queries.shape[0], keys.shape[0]
    for items, block in ((work.many_N_5, MANY_QUERIES), (work.few_N_5, FEW_QUERIES)):
        if not len(items):
            continue
        packed_attention[(len(items), kv_heads)](
            queries,
            keys,
            values,
            kept_keys,
            kept_values,
            queries if scores.sinks is None else scores.sinks,
            items,
            work.slots,
            output_T,
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
            scores.window or 0,
            WINDOWED=scores.window is not None,
            CAPPED=scores.softcap is not None,
            SINKS=scores.sinks is not None,
            UPCAST=not queries.is_cuda,
            GROUP=heads // kv_heads,
            BM=block,
            num_warps=WARPS,
            num_stages=STAGES if queries.element_size() < 4 else 1,
            **tile_of(queries.shape[2], values.shape[2], queries.element_size()),
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


def work_of(
    segments: Sequence[SegmentPlace],
    group: int,
    dtype: torch.dtype,
    device: torch.device,
    room: Tensor | None = None,
) -> Work:
    """A step as work items.

    Args:
        segments: of the step; a sampled token is one of its own. Those that continue the same one
            share their array of slots.
        group: heads that share keys.
        dtype: of the queries. Of fp32 ones all blocks are small: larger ones take half a minute to
            compile, and what is fp32 are probes.
        device: that has the step.
        room: int32, where the slots are to lie; it may be longer.

    Raises:
        ValueError: it is too short.
    """
    many_N_5, few_N_5, slots = _listed(segments, group, dtype)
    if room is None:
        room = to_device_async(slots, device)
    else:
        _copy_slots(slots, room)
    return Work(to_device_async(many_N_5, device), to_device_async(few_N_5, device), room)


def _copy_slots(slots: Tensor, room: Tensor) -> None:
    if len(slots) > len(room):
        raise ValueError(f"{len(slots)} slots in room for {len(room)}")
    copy_async(slots, room[: len(slots)])


def _listed(
    segments: Sequence[SegmentPlace], group: int, dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor]:
    """What `Work` has, on the host."""
    most = FEW_QUERIES if dtype == torch.float32 else MANY_QUERIES
    items: dict[int, list[tuple[int, int, int, int, int]]] = {FEW_QUERIES: [], MANY_QUERIES: []}
    offsets: dict[int, int] = {}
    arrays = [np.zeros(1, dtype=np.int64)]
    end = 1
    for start, tokens, first, slots in segments:
        if id(slots) not in offsets:
            offsets[id(slots)] = end
            arrays.append(slots)
            end += len(slots)
        queries = tokens * group
        block = FEW_QUERIES if queries <= FEW_QUERIES else most
        offset = offsets[id(slots)]
        items[block] += [(start, tokens, first, offset, q) for q in range(0, queries, block)]
    many_N_5, few_N_5 = (
        torch.tensor(items[block], dtype=torch.int64).reshape(-1, WORK_FIELDS)
        for block in (MANY_QUERIES, FEW_QUERIES)
    )
    # Every step lists the slots of all samples: joined and narrowed in one pass.
    slots = np.concatenate(arrays, dtype=np.int32, casting="same_kind")
    return many_N_5, few_N_5, torch.from_numpy(slots)
