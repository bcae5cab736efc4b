"""One pass over a tile of logits: logsumexp, entropy, the target's rank, the best token, maxima.

A row is read in blocks of columns by programs of their own, each of which leaves partial results;
a second kernel combines them in float64. Partial results of vocabulary shards (tensor parallelism)
combine the same way: laid side by side in the order of their columns they give the bits of the
whole, as long as shards begin at multiples of `BLOCK_COLUMNS`.

Numerics: exponentials and sums of a block in fp32 relative to the block's maximum, added over
blocks in float64. x itself has the reference's bits, so ranks and ids are exact.

Twins: `reference.logsumexp`, `entropy`, `rank`, `greedy`, `log_tail_mass`, `possible_tokens`.

Legend: T rows, V vocabulary, S blocks of columns, G groups of columns.
"""

from __future__ import annotations

import triton
import triton.language as tl

from scoring_service.kernels.gpu.rows import finished

GROUP_COLUMNS = 32
"""Columns of a group whose maximum top-K works with."""

PARTIAL_POINTERS = ["maxima_ptr", "sums_ptr", "weighted_ptr", "above_ptr", "best_ptr"]
"""Parts of one allocation, which begin wherever the number of rows puts them. Nothing that changes
from request to request may ask for another compilation while steps wait for it."""


@triton.jit(
    do_not_specialize=["first_id", "limit", "first_block"],
    do_not_specialize_on_alignment=[
        "temperatures_ptr", "targets_ptr", "target_logits_ptr", *PARTIAL_POINTERS
    ],
)  # fmt: skip
def block_statistics(
    logits_ptr,
    temperatures_ptr,
    targets_ptr,
    target_logits_ptr,
    maxima_ptr,
    sums_ptr,
    weighted_ptr,
    above_ptr,
    best_ptr,
    groups_ptr,
    possible_ptr,
    x_ptr,
    row_stride,
    x_stride,
    vocab,
    first_id,
    limit,
    blocks,
    first_block,
    group_count,
    multiplier,
    soft_cap,
    SCALED: tl.constexpr,
    CAPPED: tl.constexpr,
    TEMPERED: tl.constexpr,
    TARGETED: tl.constexpr,
    STORED: tl.constexpr,
    GROUPED: tl.constexpr,
    COUNTED: tl.constexpr,
    BLOCK: tl.constexpr,
    GROUP: tl.constexpr,
):
    """Program (row, block): partial results of a row's block, number `first_block` + block of all
    `blocks`, whose ids begin at `first_id` + block * BLOCK: its max, sum of e = exp(x - max), sum
    of e * (x - max), tokens before the target, and lowest id of the max; where they are COUNTED,
    also the tokens that are not at -inf. Temperatures are read where rows are TEMPERED, targets
    where they are TARGETED.

    The targets' logits come by themselves: their shard may be another's, and where x replaces the
    logits another block may already have done so.
    """
    row = tl.program_id(0).to(tl.int64)
    block = tl.program_id(1)
    columns = block * BLOCK + tl.arange(0, BLOCK)
    there = columns < vocab
    start = logits_ptr + row * row_stride
    temperature = 1.0
    if TEMPERED:
        temperature = tl.load(temperatures_ptr + row)
    logits = tl.load(start + columns, mask=there, other=-float("inf"))
    x = finished(logits, multiplier, soft_cap, temperature, SCALED, CAPPED, TEMPERED)
    x = tl.where(there, x, -float("inf"))
    if STORED:
        tl.store(x_ptr + row * x_stride + columns, x, mask=there)
    if GROUPED:
        group = block * (BLOCK // GROUP) + tl.arange(0, BLOCK // GROUP)
        tops = tl.max(tl.reshape(x, (BLOCK // GROUP, GROUP)), axis=1)
        tl.store(groups_ptr + row * group_count + group, tops, mask=group < group_count)

    top = tl.max(x, axis=0)
    # A block of banned tokens: anything finite will do, their exponentials are 0.
    safe = tl.where(top == -float("inf"), 0.0, top)
    e = tl.exp(x - safe)
    place = row * blocks + first_block + block
    tl.store(maxima_ptr + place, top)
    tl.store(sums_ptr + place, tl.sum(e, axis=0))
    # A token at -inf adds 0.
    tl.store(weighted_ptr + place, tl.sum(e * tl.maximum(x - safe, -1e30), axis=0))
    if COUNTED:
        tl.store(possible_ptr + place, tl.sum((x > -float("inf")).to(tl.int32), axis=0))
    ids = columns + first_id
    tl.store(best_ptr + place, tl.min(tl.where(x == top, ids, 0x7FFFFFFF), axis=0))

    if TARGETED:
        target = tl.load(targets_ptr + row).to(tl.int32)
        target_logit = tl.load(target_logits_ptr + row)
        target_x = finished(
            target_logit, multiplier, soft_cap, temperature, SCALED, CAPPED, TEMPERED
        )
        before = (x > target_x) | ((x == target_x) & (ids < target))
        # The target's own x may come of another product, a rounding away from this one.
        before = before & there & (ids < limit) & (ids != target)
        tl.store(above_ptr + place, tl.sum(before.to(tl.int32), axis=0))
    else:
        tl.store(above_ptr + place, 0)


@triton.jit(
    do_not_specialize=["limit"],
    # The last column of one row's list, which begins wherever K puts it.
    do_not_specialize_on_alignment=["last_ids_ptr", "sums_ptr"],
)
def block_tail(
    x_ptr,
    last_ids_ptr,
    maxima_ptr,
    sums_ptr,
    row_stride,
    vocab,
    limit,
    BLOCK: tl.constexpr,
):
    """Program (row, block): max and sum of exponentials of what a top-K list leaves out: the
    tokens after its last one, and the ids at or past the limit.
    """
    row = tl.program_id(0).to(tl.int64)
    block = tl.program_id(1)
    columns = block * BLOCK + tl.arange(0, BLOCK)
    there = columns < vocab
    start = x_ptr + row * row_stride
    x = tl.load(start + columns, mask=there, other=-float("inf")).to(tl.float32)
    last = tl.load(last_ids_ptr + row).to(tl.int32)
    last_x = tl.load(start + last).to(tl.float32)
    listed = (columns < limit) & ((x > last_x) | ((x == last_x) & (columns <= last)))
    x = tl.where(listed, -float("inf"), x)
    top = tl.max(x, axis=0)
    safe = tl.where(top == -float("inf"), 0.0, top)
    place = row * tl.num_programs(1) + block
    tl.store(maxima_ptr + place, top)
    tl.store(sums_ptr + place, tl.sum(tl.exp(x - safe), axis=0))


@triton.jit(do_not_specialize_on_alignment=PARTIAL_POINTERS)
def combine(
    maxima_ptr,
    sums_ptr,
    weighted_ptr,
    above_ptr,
    best_ptr,
    max_ptr,
    logsumexp_ptr,
    entropy_ptr,
    rank_ptr,
    best_out_ptr,
    blocks,
    SUMS_ONLY: tl.constexpr,
    BLOCKS: tl.constexpr,
):
    """Program row: partial results of S blocks to the row's numbers.

    With d = x - M for the row's max M, a block with max m and sums s, w (relative to m) adds
    s * exp(m - M) to Z = sum of exp(d), and (w + (m - M) * s) * exp(m - M) to sum of exp(d) * d.
    Entropy is log Z - (sum of exp(d) * d) / Z.
    """
    row = tl.program_id(0).to(tl.int64)
    index = tl.arange(0, BLOCKS)
    there = index < blocks
    place = row * blocks + index
    maxima = tl.load(maxima_ptr + place, mask=there, other=-float("inf"))
    top = tl.max(maxima, axis=0)
    safe = tl.where(top == -float("inf"), 0.0, top)
    sums = tl.load(sums_ptr + place, mask=there, other=0.0).to(tl.float64)
    distances = tl.where(maxima == -float("inf"), -1e30, maxima).to(tl.float64) - safe.to(
        tl.float64
    )
    factors = tl.exp(distances)
    total = tl.sum(sums * factors, axis=0)
    log_total = tl.log(total)
    tl.store(logsumexp_ptr + row, tl.where(total == 0, top, safe.to(tl.float64) + log_total))
    if not SUMS_ONLY:
        weighted = tl.load(weighted_ptr + place, mask=there, other=0.0).to(tl.float64)
        # A block at -inf has factor 0, and its distance is finite.
        terms = (weighted + distances * sums) * factors
        entropy = log_total - tl.sum(terms, axis=0) / total
        tl.store(entropy_ptr + row, entropy.to(tl.float32))
        above = tl.load(above_ptr + place, mask=there, other=0)
        tl.store(rank_ptr + row, 1 + tl.sum(above, axis=0))
        best = tl.load(best_ptr + place, mask=there, other=0x7FFFFFFF)
        tl.store(best_out_ptr + row, tl.min(tl.where(maxima == top, best, 0x7FFFFFFF), axis=0))
        tl.store(max_ptr + row, top)
