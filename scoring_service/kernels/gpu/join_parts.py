"""What parts of a long chain of keys left, joined in the order of their positions.

Numerics: fp32. Each part has weighted sums of values relative to its own largest score; they are
scaled to the largest of all, and added 32 parts at a time, the same 32 in any company.

Twin: `attention.attended`, which does the same with blocks of keys.

Legend: DV width of values.
"""

from __future__ import annotations

import triton
import triton.language as tl

JOINED = 32
"""Parts that are joined at a time."""


@triton.jit(do_not_specialize=["window"])
def join_parts(
    work_ptr, sums_ptr, marks_ptr, output_ptr, output_stride, window,
    WINDOWED: tl.constexpr, GROUP: tl.constexpr, DV: tl.constexpr, VALUE_WIDTH: tl.constexpr,
    BM: tl.constexpr, PARTS: tl.constexpr,
):  # fmt: skip
    """Program (block, query of it, head of keys): the output of a block that is cut.

    Parts whose keys all lie before the window left nothing. A part of which a query saw nothing
    left it the score -inf, and so the weight 0.
    """
    item = work_ptr + (1 + tl.program_id(0)) * 8
    tokens = tl.load(item + 1).to(tl.int32)
    first_query = tl.load(item + 4).to(tl.int32)
    place = tl.load(item + 7)
    own = tl.program_id(1)
    queries = tl.minimum(tokens * GROUP - first_query, BM)
    if (place >= 0) & (own < queries):
        start = tl.load(item)
        part = tl.load(item + 6).to(tl.int32)
        last = tl.load(item + 5).to(tl.int32) // part
        begin = 0
        if WINDOWED:
            first = tl.load(item + 2).to(tl.int32)
            oldest = tl.maximum(first + first_query // GROUP - window + 1, 0)
            begin = tl.minimum(oldest // part, last)
        head = tl.program_id(2).to(tl.int64)
        column = tl.arange(0, VALUE_WIDTH)
        top = -float("inf")
        total = 0.0
        sums = tl.zeros((VALUE_WIDTH,), tl.float32)
        for at in range(begin, last + 1, PARTS):
            number = at + tl.arange(0, PARTS)
            inside = number <= last
            row = place - (last - number) * queries
            partial = row * tl.num_programs(2) + head * queries + own
            tops = tl.load(marks_ptr + 2 * partial, mask=inside, other=-float("inf"))
            totals = tl.load(marks_ptr + 2 * partial + 1, mask=inside, other=0.0)
            some = tl.load(
                sums_ptr + partial[:, None] * DV + column[None, :],
                mask=inside[:, None] & (column < DV)[None, :],
                other=0.0,
            )
            new_top = tl.maximum(top, tl.max(tops, axis=0))
            # Nothing seen yet: anything finite will do, its weights are 0.
            safe = tl.where(new_top == -float("inf"), 0.0, new_top)
            weights = tl.exp2(tops - safe)
            moved = tl.exp2(top - safe)
            total = total * moved + tl.sum(weights * totals, axis=0)
            sums = sums * moved + tl.sum(weights[:, None] * some, axis=0)
            top = new_top
        query = first_query + own
        own_head = head * GROUP + query % GROUP
        tl.store(
            output_ptr + (start + query // GROUP) * output_stride + own_head * DV + column,
            (sums / total).to(output_ptr.dtype.element_ty),
            mask=column < DV,
        )
