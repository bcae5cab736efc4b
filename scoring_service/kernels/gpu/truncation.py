"""The support of truncated rows as a prefix of one order, and its mass.

Top-k, top-p and min-p each keep a prefix of the tokens ordered by x, and among equal x by
descending id. So the support is a pivot (the least x kept) and the least id kept among those at
the pivot. Parameters are per row; a row pays for the filters that it has.

Numerics: counts and masses are integers (`rows.nucleus_mass`), so the support neither depends on
tiling nor on neighbours. Its mass before truncation is the integer sum over 2**40, right to
V * 2**-40 of the best token's. p and min-p are compared in float64.

Twins: `reference.support`, `log_kept_mass`.
"""

from __future__ import annotations

import triton
import triton.language as tl

from scoring_service.kernels.gpu.rows import nucleus_mass, ordered, unordered
from scoring_service.kernels.gpu.search import keys_of, narrow, settle, totals

LIST_KEYS = 4096
"""Keys that a row's list holds: once a search has come down to so few, it goes on there."""


@triton.jit
def min_p_key(max_x, log_min_p):
    """The least key of an x with x - max >= log(min_p), compared in float64."""
    near = ordered((max_x.to(tl.float64) + log_min_p).to(tl.float32))
    found = near + 1
    for step in tl.static_range(2):
        key = near - step
        below = unordered(key).to(tl.float64) - max_x.to(tl.float64)
        if below >= log_min_p:
            found = key
    return found


@triton.jit
def guess(
    x_ptr, length, low, high, share, max_x, logsumexp, LIST: tl.constexpr, BLOCK: tl.constexpr,
    PIVOTS: tl.constexpr,
):  # fmt: skip
    """An interval of keys that very probably holds the edge of the nucleus: fp32 masses tell."""
    mass = tl.exp((logsumexp - max_x.to(tl.float64)).to(tl.float32)) * 1099511627776.0
    target = (mass * (1.0 - share.to(tl.float32))).to(tl.int64)
    above = tl.cast(0, tl.int64)
    count_above = tl.cast(0, tl.int32)
    count_low = length
    passes = 0
    while (low < high) & (count_low - count_above > LIST // 2) & (passes < 4):
        low, high, above, count_above, count_low = narrow(
            x_ptr, length, low, high, above, count_above, count_low, target, max_x, passes,
            "guess", BLOCK, PIVOTS,
        )  # fmt: skip
        passes += 1
    return low, high


@triton.jit
def id_of_tie(x_ptr, length, key, number, BLOCK: tl.constexpr):
    """The id of tie `number` (from 0, ascending) among the tokens of a key."""
    found = tl.cast(0, tl.int32)
    result = tl.cast(0, tl.int32)
    for start in range(0, length, BLOCK):
        columns = start + tl.arange(0, BLOCK)
        ties = (keys_of(x_ptr, columns, columns < length) == key).to(tl.int32)
        numbers = found + tl.cumsum(ties, axis=0) - 1
        result += tl.sum(tl.where((ties != 0) & (numbers == number), columns, 0), axis=0)
        found += tl.sum(ties, axis=0)
    return result


@triton.jit
def truncate(
    x_ptr,
    max_ptr,
    logsumexp_ptr,
    top_k_ptr,
    one_minus_p_ptr,
    log_min_p_ptr,
    list_ptr,
    pivot_ptr,
    least_id_ptr,
    log_kept_ptr,
    size_ptr,
    row_stride,
    vocab,
    MIN_KEY: tl.constexpr,
    LIST: tl.constexpr,
    BLOCK: tl.constexpr,
    PIVOTS: tl.constexpr,
):
    """Program row: its support's pivot (a key), least id at the pivot, log kept mass, and size.

    Filters that are off: top_k 0, one_minus_p 0, log_min_p -inf.
    """
    row = tl.program_id(0).to(tl.int64)
    x_ptr += row * row_stride
    list_ptr += row * LIST
    max_x = tl.load(max_ptr + row)
    logsumexp = tl.load(logsumexp_ptr + row)
    k = tl.load(top_k_ptr + row)
    share = tl.load(one_minus_p_ptr + row)
    top_key = ordered(max_x)
    no_mass = tl.cast(0, tl.int64)
    none = tl.cast(0, tl.int32)

    pivot = tl.minimum(MIN_KEY + 1, top_key)
    kept = no_mass
    size = vocab
    if (k > 0) & (k < vocab):
        pivot, _, _, size = settle(
            x_ptr, list_ptr, vocab, pivot, top_key, no_mass, none, vocab, k.to(tl.int64), max_x,
            "count", LIST, BLOCK, PIVOTS,
        )  # fmt: skip

    least_id = none
    if share > 0.0:
        # Tokens 28 nats below the best weigh nothing.
        low = tl.maximum(pivot, tl.minimum(ordered(max_x - 28.0), top_key))
        high = top_key
        first = low
        if size > LIST:
            low, high = guess(x_ptr, vocab, low, high, share, max_x, logsumexp, LIST, BLOCK, PIVOTS)
        whole, from_low, above, count_low, count_above = totals(
            x_ptr, vocab, low, high, first, max_x, BLOCK
        )
        target = tl.maximum(whole - (share * whole.to(tl.float64)).to(tl.int64), 1)
        if (above >= target) | (from_low < target):
            # The guess was wrong, as under a large top-k, whose tokens are not the whole row.
            low = first
            high = top_key
            above = no_mass
            count_above = none
            count_low = vocab
        pivot, above, count_above, count_low = settle(
            x_ptr, list_ptr, vocab, low, high, above, count_above, count_low, target, max_x,
            "mass", LIST, BLOCK, PIVOTS,
        )  # fmt: skip
        # Ties of the pivot share one mass; as many as reach the target stay, the highest ids.
        mass = tl.maximum(nucleus_mass(unordered(pivot), max_x), 1)
        ties = count_low - count_above
        staying = tl.minimum((target - above + mass - 1) // mass, ties.to(tl.int64)).to(tl.int32)
        if staying < ties:
            least_id = id_of_tie(x_ptr, vocab, pivot, ties - staying, BLOCK)
        kept = above + staying * mass
        size = count_above + staying

    limit = min_p_key(max_x, tl.load(log_min_p_ptr + row))
    if limit > pivot:
        least_id = none
    if (limit > pivot) | (share <= 0.0):
        pivot = tl.maximum(pivot, limit)
        _, kept, _, size, _ = totals(x_ptr, vocab, pivot, top_key, pivot, max_x, BLOCK)
    log_kept = max_x.to(tl.float64) + tl.log(kept.to(tl.float64) / 1099511627776.0) - logsumexp
    tl.store(pivot_ptr + row, pivot)
    tl.store(least_id_ptr + row, least_id)
    tl.store(log_kept_ptr + row, tl.minimum(log_kept, 0.0))
    tl.store(size_ptr + row, size)
