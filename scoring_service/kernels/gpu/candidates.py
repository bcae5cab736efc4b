"""The K most likely tokens of a row, found through the maxima that `block_statistics` leaves.

The K-th largest group maximum is a lower bound of the K-th largest x, and any key that at least K
maxima reach is one as well. Only the groups that reach it are read again; what reaches it in them,
about 1.16 K tokens, is sorted as 64-bit keys (x, then the lower id) by counting, for each, those
before it. Where ties make the lists overflow, the row is searched for the exact K-th value instead,
and of its ties the lowest ids are taken: slower, and as exact.

Twin: `reference.top_k_ids`.
"""

from __future__ import annotations

import triton
import triton.language as tl

from scoring_service.kernels.gpu.rows import ordered
from scoring_service.kernels.gpu.search import keys_of, narrow, settle

SIDE = 64
"""Candidates that are compared with so many others at a time."""


def list_room(k: int) -> int:
    """Candidates that a list of the k best has room for: they are about 1.16 k + 10."""
    return max(64, 1 << (k + k // 2 + 31).bit_length())


@triton.jit
def sort_key(keys, ids):
    """int64 that orders tokens by descending x, then by ascending id: the greatest comes first."""
    return (keys.to(tl.int64) << 32) + (0x7FFFFFFF - ids).to(tl.int64)


@triton.jit
def bound_of_groups(groups_ptr, groups, k, max_x, low, high, BLOCK: tl.constexpr,
                    PIVOTS: tl.constexpr):  # fmt: skip
    """A key that at least k group maxima reach, and few more than k where ties allow it."""
    above = tl.cast(0, tl.int64)
    count_above = tl.cast(0, tl.int32)
    count_low = groups
    passes = 0
    while (low < high) & (count_low > k + k // 8 + 8):
        low, high, above, count_above, count_low = narrow(
            groups_ptr, groups, low, high, above, count_above, count_low, k.to(tl.int64), max_x,
            passes, "count", BLOCK, PIVOTS,
        )  # fmt: skip
        passes += 1
    return low


@triton.jit
def gather_tokens(
    x_ptr, vocab, bound, group_list_ptr, groups, list_ptr, room, BLOCK: tl.constexpr,
    GROUP: tl.constexpr,
):  # fmt: skip
    """Lists the sort keys of the tokens of listed groups that reach the bound; returns how many
    there are. At most `room` of them are written.
    """
    found = tl.cast(0, tl.int32)
    for start in range(0, groups * GROUP, BLOCK):
        slots = start + tl.arange(0, BLOCK)
        there = slots < groups * GROUP
        group = tl.load(group_list_ptr + slots // GROUP, mask=there, other=0)
        ids = group * GROUP + slots % GROUP
        there = there & (ids < vocab)
        keys = keys_of(x_ptr, ids, there)
        reaches = (there & (keys >= bound)).to(tl.int32)
        places = found + tl.cumsum(reaches, axis=0) - 1
        writes = (reaches != 0) & (places < room)
        tl.store(list_ptr + places, sort_key(keys, ids), mask=writes)
        found += tl.sum(reaches, axis=0)
    return found


@triton.jit
def gather_groups(
    x_ptr, groups_ptr, groups, vocab, bound, group_list_ptr, list_ptr, room, BLOCK: tl.constexpr,
    GROUP: tl.constexpr,
):  # fmt: skip
    """Lists the sort keys of the tokens that reach the bound; returns how many there are.

    At most `room` of them are written.
    """
    groups_found = tl.cast(0, tl.int32)
    for start in range(0, groups, BLOCK):
        group = start + tl.arange(0, BLOCK)
        there = group < groups
        reaches = (keys_of(groups_ptr, group, there) >= bound).to(tl.int32)
        places = groups_found + tl.cumsum(reaches, axis=0) - 1
        tl.store(group_list_ptr + places, group, mask=(reaches != 0) & (places < room))
        groups_found += tl.sum(reaches, axis=0)
    tl.debug_barrier()
    found = groups_found
    if groups_found <= room:
        found = gather_tokens(
            x_ptr, vocab, bound, group_list_ptr, groups_found, list_ptr, room, BLOCK, GROUP
        )
    return found


@triton.jit
def gather_exactly(x_ptr, vocab, key, ties_wanted, list_ptr, room, BLOCK: tl.constexpr):
    """Lists the sort keys of the tokens above a key, and of its ties of the lowest ids.

    Of a row with NaN, which is above every key, no more than `room`.
    """
    found = tl.cast(0, tl.int32)
    ties_found = tl.cast(0, tl.int32)
    for start in range(0, vocab, BLOCK):
        ids = start + tl.arange(0, BLOCK)
        keys = keys_of(x_ptr, ids, ids < vocab)
        ties = (keys == key).to(tl.int32)
        numbers = ties_found + tl.cumsum(ties, axis=0) - 1
        chosen = ((keys > key) | ((ties != 0) & (numbers < ties_wanted))).to(tl.int32)
        places = found + tl.cumsum(chosen, axis=0) - 1
        writes = (chosen != 0) & (places < room)
        tl.store(list_ptr + places, sort_key(keys, ids), mask=writes)
        found += tl.sum(chosen, axis=0)
        ties_found += tl.sum(ties, axis=0)
    return tl.minimum(found, room)


# A size of 1 would be a constant, which Triton 3.6 stumbles over; one of 16, another kernel.
@triton.jit(do_not_specialize=["limit", "groups", "k", "room"])
def top_candidates(
    x_ptr,
    groups_ptr,
    max_ptr,
    group_list_ptr,
    key_list_ptr,
    list_ptr,
    ids_ptr,
    row_stride,
    group_stride,
    limit,
    groups,
    k,
    room,
    MIN_KEY: tl.constexpr,
    KEYS: tl.constexpr,
    BLOCK: tl.constexpr,
    GROUP: tl.constexpr,
    PIVOTS: tl.constexpr,
    SIDE: tl.constexpr,
):
    """Program row: ids of the k largest x among ids below `limit`, sorted; int64 [T, K].

    Lists of a row: `room` groups, `room` sort keys, and KEYS keys for the search that ties may
    need. `groups` counts those that begin below the limit, of which the last may owe its maximum to
    an id past it: the bound is one that k + 1 of them reach.
    """
    row = tl.program_id(0).to(tl.int64)
    x_ptr += row * row_stride
    groups_ptr += row * group_stride
    group_list_ptr += row * room
    key_list_ptr += row * KEYS
    list_ptr += row * room
    max_x = tl.load(max_ptr + row)
    # The row's best may lie past the limit: a bound it is all the same.
    high = ordered(max_x)
    low = tl.minimum(MIN_KEY, high)
    bound = bound_of_groups(groups_ptr, groups, k + 1, max_x, low, high, BLOCK, PIVOTS)
    found = limit
    if groups > k:
        found = gather_groups(
            x_ptr, groups_ptr, groups, limit, bound, group_list_ptr, list_ptr, room, BLOCK, GROUP
        )
    if (found > room) | (groups <= k):
        key, _, above, _ = settle(
            x_ptr, key_list_ptr, limit, low, high, tl.cast(0, tl.int64), tl.cast(0, tl.int32),
            limit, k.to(tl.int64), max_x, "count", KEYS, BLOCK, PIVOTS,
        )  # fmt: skip
        tl.debug_barrier()
        found = gather_exactly(x_ptr, limit, key, k - above, list_ptr, room, BLOCK)
    tl.debug_barrier()
    for start in range(0, found, SIDE):
        mine = start + tl.arange(0, SIDE)
        own = tl.load(list_ptr + mine, mask=mine < found, other=-0x8000000000000000)
        before = tl.zeros((SIDE,), tl.int32)
        for other_start in range(0, found, SIDE):
            others = other_start + tl.arange(0, SIDE)
            keys = tl.load(list_ptr + others, mask=others < found, other=-0x8000000000000000)
            before += tl.sum((keys[None, :] > own[:, None]).to(tl.int32), axis=1)
        ids = 0x7FFFFFFF - (own & 0xFFFFFFFF)
        tl.store(ids_ptr + row * k + before, ids, mask=(mine < found) & (before < k))
