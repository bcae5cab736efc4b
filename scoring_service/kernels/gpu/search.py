"""Finds the value at which weights, added up from the largest x downwards, reach a target.

With weight 1 it is the k-th largest value, with nucleus masses the edge of the nucleus. The search
keeps an interval of keys (`rows.ordered`) that holds the answer and splits it at PIVOTS keys a
pass, so it ends after a few passes whatever the row holds, ties included. Weights are integers:
sums are exact, and the answer depends neither on the order of addition nor on the pivots.
"""

from __future__ import annotations

import triton
import triton.language as tl

from scoring_service.kernels.gpu.rows import nucleus_mass, ordered, unordered

BLOCK = 1024
"""Columns of a row that are read at a time, at most."""

PIVOTS = 8
"""Keys an interval is split at in one pass."""

LIST_KEYS = 4096
"""Keys that a list of top-K's holds: once a search has come down to so few, it goes on there."""

VALUE_SPAN = tl.constexpr(64.0)
"""How far below an interval's largest x its keys are split evenly as x."""

NARROW = tl.constexpr(2.0**-16)
"""Of an interval's largest magnitude: pivots of a wider one are 14 units in the last place apart,
which is more than their roundings come to."""

MIN_KEY = -2139095041
"""`ordered(-inf)`: no token has a smaller key."""


def search_block(vocab: int) -> int:
    """Columns that are read at a time: by V alone, as everything that splits a row."""
    return min(BLOCK, max(64, 1 << (vocab - 1).bit_length()))


@triton.jit
def keys_of(source_ptr, columns, there):
    """Keys of columns of a row of x, or of a list of int32 keys; those not there come last."""
    if source_ptr.dtype.element_ty == tl.int32:
        keys = tl.load(source_ptr + columns, mask=there, other=-0x80000000)
    else:
        x = tl.load(source_ptr + columns, mask=there, other=-float("inf")).to(tl.float32)
        keys = tl.where(there, ordered(x), -0x80000000)
    return keys


@triton.jit
def weights_of(keys, max_x, MODE: tl.constexpr):
    """What tokens of these keys weigh: 1 (MODE "count"), or their mass ("mass")."""
    if MODE == "count":
        weights = tl.full(keys.shape, 1, tl.int64)
    else:
        weights = nucleus_mass(unordered(keys), max_x)
    # Columns that are not there, and tokens at -inf.
    return tl.where(keys > -2139095041, weights, 0)


@triton.jit
def pivots_between(low, high, passes, PIVOTS: tl.constexpr):
    """Keys in (low, high], ascending: evenly spaced as x, or as keys once that no longer helps.

    Spaced as x they suit logits, of which those that weigh lie within VALUE_SPAN of the largest: an
    interval that reaches further down, as down to the least float, is split near its top, and what
    lies below it is one subinterval. Spaced as keys, nine subintervals a pass, they come down to
    one key in 11 passes at most. So are those of a NARROW interval, which rounding would put out of
    order.
    """
    index = tl.arange(0, PIVOTS) + 1
    share = index.to(tl.float32) / (PIVOTS + 1)
    last = tl.minimum(unordered(high), 1e38)
    first = tl.maximum(tl.maximum(unordered(low), last - VALUE_SPAN), -1e38)
    by_value = ordered(first * (1.0 - share) + last * share).to(tl.int64)
    low = low.to(tl.int64)
    high = high.to(tl.int64)
    by_key = low + 1 + (high - low) * index // (PIVOTS + 1)
    size = tl.maximum(tl.abs(first), tl.abs(last))
    is_wide = (last - first) > size * NARROW
    pivots = tl.where((passes < 4) & is_wide, by_value, by_key)
    return tl.minimum(tl.maximum(pivots, low + 1), high).to(tl.int32)


@triton.jit
def pick(values, index, at):
    """Element `at` of a vector."""
    return tl.sum(tl.where(index == at, values, 0), axis=0)


@triton.jit
def narrow(
    source_ptr,
    length,
    low,
    high,
    above,
    count_above,
    count_low,
    target,
    max_x,
    passes,
    MODE: tl.constexpr,
    BLOCK: tl.constexpr,
    PIVOTS: tl.constexpr,
):
    """One pass: an interval of keys [low, high] that holds the answer to a smaller one.

    The answer is the greatest key whose tokens and all larger ones together weigh `target`.

    Returns:
        low, high, the weight above high, tokens above high, tokens at or above low.
    """
    index = tl.arange(0, PIVOTS)
    pivots = pivots_between(low, high, passes, PIVOTS)
    weight = tl.zeros((PIVOTS, BLOCK), tl.int64)
    count = tl.zeros((PIVOTS, BLOCK), tl.int32)
    for start in range(0, length, BLOCK):
        columns = start + tl.arange(0, BLOCK)
        keys = keys_of(source_ptr, columns, columns < length)
        reaches = keys[None, :] >= pivots[:, None]
        count += reaches.to(tl.int32)
        if MODE != "count":
            weight += tl.where(reaches, weights_of(keys, max_x, MODE)[None, :], 0)
    counts = tl.sum(count, axis=1)
    weights = counts.to(tl.int64)
    if MODE != "count":
        weights = tl.sum(weight, axis=1)
    # Weights fall as pivots rise: the last pivot that reaches the target begins the new interval.
    reached = tl.sum((weights >= target).to(tl.int32), axis=0)
    if reached > 0:
        low = pick(pivots, index, reached - 1)
        count_low = pick(counts, index, reached - 1)
    if reached < PIVOTS:
        high = pick(pivots, index, reached) - 1
        above = pick(weights, index, reached)
        count_above = pick(counts, index, reached)
    return low, high, above, count_above, count_low


@triton.jit
def collect(source_ptr, length, low, high, list_ptr, BLOCK: tl.constexpr):
    """Writes the keys in [low, high] of a row to a list; returns how many they are."""
    # Nobody still reads the list that was there before.
    tl.debug_barrier()
    found = 0
    for start in range(0, length, BLOCK):
        columns = start + tl.arange(0, BLOCK)
        keys = keys_of(source_ptr, columns, columns < length)
        inside = ((keys >= low) & (keys <= high)).to(tl.int32)
        places = found + tl.cumsum(inside, axis=0) - 1
        tl.store(list_ptr + places, keys, mask=inside != 0)
        found += tl.sum(inside, axis=0)
    # The list is read by other threads than those that wrote it.
    tl.debug_barrier()
    return found


@triton.jit
def settle(
    source_ptr,
    list_ptr,
    length,
    low,
    high,
    above,
    count_above,
    count_low,
    target,
    max_x,
    MODE: tl.constexpr,
    LIST: tl.constexpr,
    BLOCK: tl.constexpr,
    PIVOTS: tl.constexpr,
):
    """Narrows an interval of keys to the answer: on the row, and once few are left on a list.

    Returns:
        The key, the weight above it, tokens above it, tokens at or above it.
    """
    passes = 0
    while (low < high) & (count_low - count_above > LIST):
        low, high, above, count_above, count_low = narrow(
            source_ptr, length, low, high, above, count_above, count_low, target, max_x, passes,
            MODE, BLOCK, PIVOTS,
        )  # fmt: skip
        passes += 1
    if low < high:
        listed = collect(source_ptr, length, low, high, list_ptr, BLOCK)
        rest = target - above
        more = tl.cast(0, tl.int64)
        count_more = tl.cast(0, tl.int32)
        count_from = listed
        passes = 0
        while low < high:
            low, high, more, count_more, count_from = narrow(
                list_ptr, listed, low, high, more, count_more, count_from, rest, max_x, passes,
                MODE, BLOCK, PIVOTS,
            )  # fmt: skip
            passes += 1
        above += more
        count_low = count_above + count_from
        count_above += count_more
    return low, above, count_above, count_low


@triton.jit
def totals(source_ptr, length, low, max_x, BLOCK: tl.constexpr):
    """Exact mass of the tokens at or above a key, and how many they are."""
    mass = tl.zeros((BLOCK,), tl.int64)
    count = tl.zeros((BLOCK,), tl.int32)
    for start in range(0, length, BLOCK):
        columns = start + tl.arange(0, BLOCK)
        keys = keys_of(source_ptr, columns, columns < length)
        mass += tl.where(keys >= low, weights_of(keys, max_x, "mass"), 0)
        count += (keys >= low).to(tl.int32)
    return tl.sum(mass, axis=0), tl.sum(count, axis=0)
