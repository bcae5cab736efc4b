"""The support of truncated rows as a prefix of one order, and its mass.

Top-k, top-p and min-p each keep a prefix of the tokens ordered by x, and among equal x by
descending id. So the support is a pivot (the least x kept) and the least id kept among those at
the pivot. Parameters are per row; a row pays for the filters that it has. Three launches, none of
which waits for the host; the last two end at once for rows that are done:

`shortlist`, a program a row: the maxima of groups, which `block_statistics` left, give a floor that
the edge does not lie under: a key that k of them reach, or those that together weigh what the
nucleus has to, or min-p's own. The tokens from the floor on, where their groups are few, are
gathered in a list, and the support is settled among them. Of a nucleus without top-k the mass of
the whole row is then known only as fp32 had it, within MARGIN: where both ends of that give one
edge, it is the edge. What is left gets a bracket of keys, `bracket`.

`sweep`, a program a block of a row: exact masses of the whole row and of what lies above the
bracket, and a list of the tokens in it. A block's integers are added up by the next launch, and the
order of the list means nothing.

`settle_support`, a program a row: the edge among the tokens of the list. Where the edge was not in
the bracket, the list overflowed with ties, or a nucleus is wanted of a top-k that no list holds,
one program searches the row by itself (`search`), slowly.

How much of a row of 151,936 is read, beyond `block_statistics`: the maxima of groups, 1/32, and the
groups that matter, where a support has up to two thousand tokens; a sample of 1/18 and one
sweep where a nucleus is wide; one sweep under a wide min-p.

Numerics: counts and masses are integers (`rows.nucleus_mass`), so the support neither depends on
tiling nor on neighbours. Its mass before truncation is the integer sum over 2**40, right to
V * 2**-40 of the best token's. p and min-p are compared in float64. Of a row that is no
distribution everything is kept.

Twins: `reference.support`, `log_kept_mass`.
"""

from __future__ import annotations

import triton
import triton.language as tl

from scoring_service.kernels.gpu.bracket import bracket
from scoring_service.kernels.gpu.candidates import gather_tokens, sort_key
from scoring_service.kernels.gpu.edges import (
    FEW,
    edge_among,
    greatest_reaching,
    least_staying,
    listed_tokens,
    target_of,
)
from scoring_service.kernels.gpu.rows import nucleus_mass, ordered, unordered
from scoring_service.kernels.gpu.search import keys_of, settle, totals, weights_of

LIST = 8192
"""Tokens that a row's list holds."""

SHORT = 2048
"""Tokens of a list that is settled in fewer registers; groups that are read again, at most; keys
of the list that a search of a whole row goes on in."""

MAX_GROUPS = 16_384
"""Maxima that a program holds; a longer row has no floor."""

STATE = 5
"""int32 numbers of a row between launches: what is left to do, the bracket's two ends, the key of
min-p, and how many tokens are listed so far."""

DONE, NUCLEUS, TOP, TOTALS, ALONE = (tl.constexpr(number) for number in range(5))
"""What is left to do: nothing; the edge of a nucleus or a k-th value in the bracket; the mass from
a known key on; or everything."""

MARGIN = tl.constexpr(2.0**-16)
"""Of an fp32 logsumexp's sum, relative. Exponentials within 28 nats of a block's maximum err by
4e-6 at most, sums of 4,096 of them by 1e-6."""

UNIT = tl.constexpr(1099511627776.0)


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
def key_reached(tops, weights, low, high, target):
    """A key of [low, high] from which on maxima of groups weigh the target, and little more."""
    reached = tl.sum(weights, axis=0)
    while (low < high) & (reached > target * 1.0625):
        distance = high.to(tl.int64) - low.to(tl.int64)
        middle = (high.to(tl.int64) - distance // 2).to(tl.int32)
        weight = tl.sum(tl.where(tops >= middle, weights, 0.0), axis=0)
        if weight >= target:
            low = middle
            reached = weight
        else:
            high = middle - 1
    return low


@triton.jit
def log_mass(kept, max_x, logsumexp):
    """Log of an integer mass as a probability."""
    log_kept = max_x.to(tl.float64) + tl.log(kept.to(tl.float64) / UNIT) - logsumexp
    return tl.minimum(log_kept, 0.0)


@triton.jit
def decide(
    list_ptr, listed, floor, top_key, limit, k, counted, share, bulk, max_x, vocab, N: tl.constexpr
):
    """The support of a row whose tokens from `floor` on are listed.

    Returns:
        Whether it is decided; pivot, least id, mass and size; else a bracket of the edge, whose
        high end is below its low one where nothing is known.
    """
    keys, masses = listed_tokens(list_ptr, listed, max_x, N)
    pivot = floor
    if counted:
        ones = tl.full((N,), 1, tl.int32)
        pivot = greatest_reaching(keys, ones, floor, top_key, k)
    decided = tl.cast(1, tl.int32)
    least_id = tl.cast(0, tl.int32)
    kept = tl.sum(tl.where(keys >= pivot, masses, 0), axis=0)
    size = tl.sum((keys >= pivot).to(tl.int32), axis=0)
    low = pivot
    high = pivot
    if share > 0.0:
        target = target_of(kept, share)
        most = target
        if counted == 0:
            whole = bulk * UNIT
            slack = whole * MARGIN
            # A mass is cut off to an integer; beyond 2**53 its float64 is rounded.
            target = target_of((whole - slack).to(tl.int64) - vocab, share)
            target = tl.maximum(target - 64, 1)
            most = target_of((whole + slack).to(tl.int64), share) + 64
        if kept >= most:
            none = tl.cast(0, tl.int64)
            low, staying, ties, kept, size = edge_among(
                keys, masses, pivot, top_key, none, most, max_x
            )
            high = low
            if target < most:
                high, other, _ties, _kept, _size = edge_among(
                    keys, masses, low, top_key, none, target, max_x
                )
                if (high != low) | (other != staying):
                    decided = tl.cast(0, tl.int32)
            if staying < ties:
                least_id = least_staying(list_ptr, listed, low, staying, vocab, N)
            pivot = low
        else:
            decided = tl.cast(0, tl.int32)
            high = low - 1
    if (limit > pivot) | (share <= 0.0):
        if limit > pivot:
            pivot = limit
            least_id = tl.cast(0, tl.int32)
        kept = tl.sum(tl.where(keys >= pivot, masses, 0), axis=0)
        size = tl.sum((keys >= pivot).to(tl.int32), axis=0)
    return decided, pivot, least_id, kept, size, low, high


@triton.jit(
    do_not_specialize=["groups", "blocks"],
    do_not_specialize_on_alignment=["top_k_ptr", "top_p_ptr", "min_p_ptr"],
)
def shortlist(
    x_ptr,
    groups_ptr,
    possible_ptr,
    max_ptr,
    logsumexp_ptr,
    top_k_ptr,
    top_p_ptr,
    min_p_ptr,
    group_list_ptr,
    list_ptr,
    listed_ptr,
    state_ptr,
    pivot_ptr,
    least_id_ptr,
    log_kept_ptr,
    size_ptr,
    row_stride,
    vocab,
    groups,
    blocks,
    MIN_KEY: tl.constexpr,
    LIST: tl.constexpr,
    SHORT: tl.constexpr,
    SAMPLE: tl.constexpr,
    BLOCK: tl.constexpr,
    GROUP: tl.constexpr,
    GROUPS: tl.constexpr,
    BLOCKS: tl.constexpr,
    STATE: tl.constexpr,
):
    """Program row: its support where few tokens decide it, else what the sweep is to find out.

    Filters that are off: top_k 0, top_p 1, min_p 0. `listed` tells how many of a row's list there
    are when the whole support is in it, else it is -1.
    """
    row = tl.program_id(0).to(tl.int64)
    x_ptr += row * row_stride
    list_ptr += row * LIST
    group_list_ptr += row * SHORT
    max_x = tl.load(max_ptr + row)
    logsumexp = tl.load(logsumexp_ptr + row)
    k = tl.load(top_k_ptr + row)
    share = 1.0 - tl.load(top_p_ptr + row)
    min_p = tl.load(min_p_ptr + row)
    block = tl.arange(0, BLOCKS)
    possible = tl.load(possible_ptr + row * blocks + block, mask=block < blocks, other=0)
    size = tl.sum(possible, axis=0)
    top_key = ordered(max_x)
    first = tl.minimum(MIN_KEY + 1, top_key)
    limit = first
    if min_p > 0.0:
        limit = tl.maximum(min_p_key(max_x, tl.log(min_p)), first)
    # Of no more tokens than k, top-k keeps all.
    counted = (k > 0) & (k < size)
    narrow = counted | (share > 0.0)

    pivot = first
    least_id = tl.cast(0, tl.int32)
    log_kept = tl.cast(0.0, tl.float64)
    listed = tl.cast(-1, tl.int32)
    left = tl.cast(DONE, tl.int32)
    low = first
    high = first
    if (narrow | (limit > first)) & (tl.abs(logsumexp) < float("inf")):
        bulk = tl.exp(logsumexp - max_x.to(tl.float64))
        group = tl.arange(0, GROUPS)
        there = group < groups
        tops = keys_of(groups_ptr + row * groups, group, there)
        floor = limit
        known = groups <= GROUPS
        if narrow:
            weights = tl.where(counted, 1.0, tl.exp(unordered(tops) - max_x))
            weights = tl.where(tops > MIN_KEY, weights, 0.0)
            # A little more than is needed: what the list has is checked.
            target = tl.where(counted, k.to(tl.float64), (1.0 - share) * bulk * 1.0005)
            target = target.to(tl.float32)
            least = tl.min(tl.where(there, tops, 0x7FFFFFFF), axis=0)
            floor = tl.maximum(least, first)
            known = known & (tl.sum(weights, axis=0) >= target)
            if known:
                floor = key_reached(tops, weights, floor, top_key, target)
        reaches = (there & (tops >= floor)).to(tl.int32)
        reaching = tl.sum(reaches, axis=0)
        decided = tl.cast(0, tl.int32)
        low = first
        high = first - 1
        if known & (reaching <= SHORT):
            places = tl.cumsum(reaches, axis=0) - 1
            tl.store(group_list_ptr + places, group, mask=reaches != 0)
            # Lists are read by other threads than those that wrote them.
            tl.debug_barrier()
            found = gather_tokens(
                x_ptr, vocab, floor, group_list_ptr, reaching, list_ptr, LIST, BLOCK, GROUP
            )
            tl.debug_barrier()
            kept = tl.cast(0, tl.int64)
            whole_size = size
            if found <= FEW:
                decided, pivot, least_id, kept, size, low, high = decide(
                    list_ptr, found, floor, top_key, limit, k, counted, share, bulk, max_x, vocab,
                    FEW,
                )  # fmt: skip
            elif found <= SHORT:
                decided, pivot, least_id, kept, size, low, high = decide(
                    list_ptr, found, floor, top_key, limit, k, counted, share, bulk, max_x, vocab,
                    SHORT,
                )  # fmt: skip
            if decided != 0:
                log_kept = log_mass(kept, max_x, logsumexp)
                listed = found
            else:
                size = whole_size
        if decided == 0:
            if narrow == 0:
                left = tl.cast(TOTALS, tl.int32)
                low = limit
                high = limit - 1
            elif counted & (share > 0.0):
                left = tl.cast(ALONE, tl.int32)
            else:
                left = tl.where(counted, TOP, NUCLEUS).to(tl.int32)
                if low > high:
                    low = first
                    lower = share * bulk
                    if counted:
                        lower = (vocab - k).to(tl.float64)
                    else:
                        # Tokens 28 nats below the best weigh nothing.
                        low = tl.maximum(low, tl.minimum(ordered(max_x - 28.0), top_key))
                    high = top_key
                    if vocab > LIST:
                        low, high = bracket(
                            x_ptr, vocab, max_x, lower.to(tl.float32), counted, low, top_key,
                            SAMPLE, LIST,
                        )  # fmt: skip
    tl.store(pivot_ptr + row, pivot)
    tl.store(least_id_ptr + row, least_id)
    tl.store(log_kept_ptr + row, log_kept)
    tl.store(size_ptr + row, size)
    tl.store(listed_ptr + row, listed)
    state_ptr += row * STATE
    tl.store(state_ptr, left)
    tl.store(state_ptr + 1, low)
    tl.store(state_ptr + 2, high)
    tl.store(state_ptr + 3, limit)
    tl.store(state_ptr + 4, 0)


@triton.jit
def sweep(
    x_ptr,
    max_ptr,
    state_ptr,
    list_ptr,
    sums_ptr,
    counts_ptr,
    row_stride,
    vocab,
    LIST: tl.constexpr,
    STATE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Program (row, block): the block's mass, that above the bracket, and that from min-p's key on;
    tokens of the last two; and those in the bracket at the end of the row's list.

    Sums int64 [T, 3, S], counts int32 [T, 2, S]. Programs take places in the list by an addition
    that none of them waits for; the list is read by the next launch, which begins after they ended.
    """
    row = tl.program_id(0).to(tl.int64)
    block = tl.program_id(1)
    blocks = tl.num_programs(1)
    state_ptr += row * STATE
    left = tl.load(state_ptr)
    if (left != DONE) & (left != ALONE):
        low = tl.load(state_ptr + 1)
        high = tl.load(state_ptr + 2)
        limit = tl.load(state_ptr + 3)
        columns = block * BLOCK + tl.arange(0, BLOCK)
        keys = keys_of(x_ptr + row * row_stride, columns, columns < vocab)
        masses = weights_of(keys, tl.load(max_ptr + row), "mass")
        sums_ptr += row * 3 * blocks + block
        counts_ptr += row * 2 * blocks + block
        above = keys > high
        staying = keys >= limit
        tl.store(sums_ptr, tl.sum(masses, axis=0))
        tl.store(sums_ptr + blocks, tl.sum(tl.where(above, masses, 0), axis=0))
        tl.store(sums_ptr + 2 * blocks, tl.sum(tl.where(staying, masses, 0), axis=0))
        tl.store(counts_ptr, tl.sum(above.to(tl.int32), axis=0))
        tl.store(counts_ptr + blocks, tl.sum(staying.to(tl.int32), axis=0))
        inside = ((keys >= low) & (keys <= high)).to(tl.int32)
        number = tl.sum(inside, axis=0)
        if number > 0:
            taken = tl.atomic_add(state_ptr + 4, number, sem="relaxed")
            places = taken + tl.cumsum(inside, axis=0) - 1
            writes = (inside != 0) & (places < LIST)
            tl.store(list_ptr + row * LIST + places, sort_key(keys, columns), mask=writes)


@triton.jit
def settle_listed(
    list_ptr, listed, low, high, above, count_above, target, counted, max_x, vocab, N: tl.constexpr
):
    """The support of a row whose tokens in a bracket are listed.

    Returns:
        Whether the edge lies in it; pivot, least id, mass and size.
    """
    keys, masses = listed_tokens(list_ptr, listed, max_x, N)
    least_id = tl.cast(0, tl.int32)
    if counted:
        ones = (keys >= low).to(tl.int32)
        wanted = (target - count_above).to(tl.int32)
        settled = ((wanted > 0) & (tl.sum(ones, axis=0) >= wanted)).to(tl.int32)
        pivot = greatest_reaching(keys, ones, low, high, wanted)
        kept = above + tl.sum(tl.where(keys >= pivot, masses, 0), axis=0)
        size = tl.sum((keys >= pivot).to(tl.int32), axis=0)
    else:
        settled = ((above < target) & (above + tl.sum(masses, axis=0) >= target)).to(tl.int32)
        pivot, staying, ties, kept, size = edge_among(keys, masses, low, high, above, target, max_x)
        if staying < ties:
            least_id = least_staying(list_ptr, listed, pivot, staying, vocab, N)
    return settled, pivot, least_id, kept, count_above + size


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
def search_row(
    x_ptr, keys_ptr, vocab, pivot, top_key, limit, k, counted, share, max_x, KEYS: tl.constexpr,
    BLOCK: tl.constexpr, PIVOTS: tl.constexpr,
):  # fmt: skip
    """The support of a row by one program, whatever the row holds.

    Returns:
        Pivot, least id, mass and size.
    """
    no_mass = tl.cast(0, tl.int64)
    none = tl.cast(0, tl.int32)
    least_id = none
    kept = no_mass
    size = vocab
    if counted:
        pivot, _mass, _count, size = settle(
            x_ptr, keys_ptr, vocab, pivot, top_key, no_mass, none, vocab, k, max_x, "count", KEYS,
            BLOCK, PIVOTS,
        )  # fmt: skip
    if share > 0.0:
        low = tl.maximum(pivot, tl.minimum(ordered(max_x - 28.0), top_key))
        whole, count_low = totals(x_ptr, vocab, low, max_x, BLOCK)
        target = target_of(whole, share)
        pivot, above, count_above, count_low = settle(
            x_ptr, keys_ptr, vocab, low, top_key, no_mass, none, count_low, target, max_x, "mass",
            KEYS, BLOCK, PIVOTS,
        )  # fmt: skip
        mass = tl.maximum(nucleus_mass(unordered(pivot), max_x), 1)
        ties = count_low - count_above
        staying = tl.minimum((target - above + mass - 1) // mass, ties.to(tl.int64)).to(tl.int32)
        if staying < ties:
            least_id = id_of_tie(x_ptr, vocab, pivot, ties - staying, BLOCK)
        kept = above + staying * mass
        size = count_above + staying
    if limit > pivot:
        least_id = none
    if (limit > pivot) | (share <= 0.0):
        pivot = tl.maximum(pivot, limit)
        kept, size = totals(x_ptr, vocab, pivot, max_x, BLOCK)
    return pivot, least_id, kept, size


@triton.jit(do_not_specialize=["blocks"], do_not_specialize_on_alignment=["top_k_ptr", "top_p_ptr"])
def settle_support(
    x_ptr,
    max_ptr,
    logsumexp_ptr,
    top_k_ptr,
    top_p_ptr,
    state_ptr,
    list_ptr,
    keys_ptr,
    sums_ptr,
    counts_ptr,
    pivot_ptr,
    least_id_ptr,
    log_kept_ptr,
    size_ptr,
    row_stride,
    vocab,
    blocks,
    MIN_KEY: tl.constexpr,
    LIST: tl.constexpr,
    SHORT: tl.constexpr,
    BLOCK: tl.constexpr,
    BLOCKS: tl.constexpr,
    PIVOTS: tl.constexpr,
    STATE: tl.constexpr,
):
    """Program row: the support of a row that `shortlist` left to be swept."""
    row = tl.program_id(0).to(tl.int64)
    state_ptr += row * STATE
    left = tl.load(state_ptr)
    if left != DONE:
        list_ptr += row * LIST
        max_x = tl.load(max_ptr + row)
        k = tl.load(top_k_ptr + row).to(tl.int64)
        share = 1.0 - tl.load(top_p_ptr + row)
        low = tl.load(state_ptr + 1)
        high = tl.load(state_ptr + 2)
        limit = tl.load(state_ptr + 3)
        listed = tl.load(state_ptr + 4)
        counted = (left == TOP) | (left == ALONE)
        block = tl.arange(0, BLOCKS)
        # Rows that were not swept have none.
        there = (block < blocks) & (left != ALONE)
        sums = sums_ptr + row * 3 * blocks + block
        counts = counts_ptr + row * 2 * blocks + block
        pivot = limit
        least_id = tl.cast(0, tl.int32)
        kept = tl.sum(tl.load(sums + 2 * blocks, mask=there, other=0), axis=0)
        size = tl.sum(tl.load(counts + blocks, mask=there, other=0), axis=0)
        from_limit = kept
        count_limit = size
        settled = (left == TOTALS).to(tl.int32)
        if ((left == NUCLEUS) | (left == TOP)) & (listed <= LIST):
            target = k
            if left == NUCLEUS:
                whole = tl.sum(tl.load(sums, mask=there, other=0), axis=0)
                target = target_of(whole, share)
            above = tl.sum(tl.load(sums + blocks, mask=there, other=0), axis=0)
            count_above = tl.sum(tl.load(counts, mask=there, other=0), axis=0)
            if listed <= SHORT:
                settled, pivot, least_id, kept, size = settle_listed(
                    list_ptr, listed, low, high, above, count_above, target, counted, max_x, vocab,
                    SHORT,
                )  # fmt: skip
            else:
                settled, pivot, least_id, kept, size = settle_listed(
                    list_ptr, listed, low, high, above, count_above, target, counted, max_x, vocab,
                    LIST,
                )  # fmt: skip
            if limit > pivot:
                pivot = limit
                least_id = tl.cast(0, tl.int32)
                kept = from_limit
                size = count_limit
        if settled == 0:
            top_key = ordered(max_x)
            first = tl.minimum(MIN_KEY + 1, top_key)
            pivot, least_id, kept, size = search_row(
                x_ptr + row * row_stride, keys_ptr + row * SHORT, vocab, first, top_key, limit, k,
                counted, share, max_x, SHORT, BLOCK, PIVOTS,
            )  # fmt: skip
        tl.store(pivot_ptr + row, pivot)
        tl.store(least_id_ptr + row, least_id)
        tl.store(log_kept_ptr + row, log_mass(kept, max_x, tl.load(logsumexp_ptr + row)))
        tl.store(size_ptr + row, size)
