"""Exact sampling: the exponential race over each row's support.

Every token of the support gets E / p with E = -log1p(-u), u = (word + 1/2) * 2**-32 of its own
Philox word; the smallest wins. Words depend on (seed, sample, position, token id) alone and are
the reference's bit for bit. There is one stream and one kernel for every mix of filters: a row's
support comes as a pivot and a least id (`truncation`), which without filters is all of the row. A
small one comes with a list of tokens that holds it: then only the list is read. A token's key is
the same number either way.

Numerics: keys E * exp(max - x) in fp32, whose logarithms are within KEY_BOUND of the reference's
float64 ones, so the drawn token is the reference's save where the two best keys are closer than
twice that. Equal keys go to the lower id. The best token of a row always belongs to its support and
has E <= 23, the smallest E is 2**-33: nothing more than 26 nats below the best can win, so that the
exponential may stop growing at 80.

Twin: `reference.draw`.
"""

from __future__ import annotations

import triton
import triton.language as tl

from scoring_service.kernels.gpu.rows import ordered, unordered

KEY_BOUND = 4e-6
"""Largest error of the logarithm of a key that can win."""

NO_ID = 0x7FFFFFFF

CHUNK = 512
"""Tokens of a list that are raced at a time."""


@triton.jit
def words_of_counters(counters, seed, sample_index, position):
    """The four uint32 words of each counter, which four consecutive ids share."""
    counters = counters.to(tl.uint32)
    none = tl.zeros_like(counters)
    return tl.philox_impl(
        counters,
        none + position,
        none + sample_index,
        none,
        (seed & 0xFFFFFFFF).to(tl.uint32),
        ((seed >> 32) & 0xFFFFFFFF).to(tl.uint32),
        10,
    )


@triton.jit
def token_words(first_column, seed, sample_index, position, BLOCK: tl.constexpr):
    """The uint32 words of BLOCK consecutive token ids from a multiple of 4 on."""
    counters = first_column // 4 + tl.arange(0, BLOCK // 4)
    w0, w1, w2, w3 = words_of_counters(counters, seed, sample_index, position)
    return tl.reshape(tl.join(tl.join(w0, w2), tl.join(w1, w3)), (BLOCK,))


@triton.jit
def words_of_ids(ids, seed, sample_index, position):
    """The uint32 words of any token ids."""
    w0, w1, w2, w3 = words_of_counters(ids // 4, seed, sample_index, position)
    place = ids % 4
    return tl.where(place < 2, tl.where(place == 0, w0, w1), tl.where(place == 2, w2, w3))


@triton.jit
def exponential(words):
    """E = -log1p(-(word + 1/2) * 2**-32) in fp32, to a relative 1e-6.

    Below one half it is 2 atanh(u / (2 - u)) as a series, which keeps the relative precision of the
    smallest u; above, -log(1 - u) with 1 - u made from the complement's bits.
    """
    half = 0.00000000011641532182693481  # 2**-33
    u = words.to(tl.float32) * (2.0 * half) + half
    rest = (words ^ 0xFFFFFFFF).to(tl.float32) * (2.0 * half) + half
    s = u / (2.0 - u)
    z = s * s
    series = 1.0 / 15.0
    series = series * z + 1.0 / 13.0
    series = series * z + 1.0 / 11.0
    series = series * z + 1.0 / 9.0
    series = series * z + 1.0 / 7.0
    series = series * z + 1.0 / 5.0
    series = series * z + 1.0 / 3.0
    return tl.where(u < 0.5, 2.0 * (series * z * s + s), -tl.log(rest))


@triton.jit
def kept(x, columns, there, pivot, least_id):
    """Whether tokens belong to a support given as a pivot key and the least id at the pivot."""
    keys = ordered(x)
    return there & ((keys > pivot) | ((keys == pivot) & (columns >= least_id)))


@triton.jit
def best_of(keys, ids, inside):
    """The least key of tokens that take part, and the lowest id that has it.

    Where none takes part no key tells anything of an id.
    """
    keys = tl.where(inside, keys, float("inf"))
    least = tl.min(keys, axis=0)
    return least, tl.min(tl.where(inside & (keys == least), ids, 0x7FFFFFFF), axis=0)


@triton.jit
def race_of_list(
    list_ptr, listed, max_x, pivot, least_id, seed, sample_index, position, first_id,
    CHUNK: tl.constexpr,
):  # fmt: skip
    """The best key of a support among the sort keys of a list (`candidates.sort_key`)."""
    best = tl.cast(float("inf"), tl.float32)
    winner = tl.cast(0x7FFFFFFF, tl.int32)
    for start in range(0, listed, CHUNK):
        index = start + tl.arange(0, CHUNK)
        there = index < listed
        packed = tl.load(list_ptr + index, mask=there, other=0)
        x = unordered((packed >> 32).to(tl.int32))
        ids = (0x7FFFFFFF - (packed & 0xFFFFFFFF)).to(tl.int32) + first_id
        words = words_of_ids(ids, seed, sample_index, position)
        keys = exponential(words) * tl.exp(tl.minimum(max_x - x, 80.0))
        least, least_winner = best_of(keys, ids, kept(x, ids, there, pivot, least_id))
        if (least < best) | ((least == best) & (least_winner < winner)):
            best = least
            winner = least_winner
    return best, winner


# The numbers of words are columns of one tensor: how many rows there are decides where they begin.
@triton.jit(do_not_specialize_on_alignment=["seed_ptr", "sample_index_ptr", "position_ptr"])
def race(
    x_ptr,
    max_ptr,
    pivot_ptr,
    least_id_ptr,
    list_ptr,
    listed_ptr,
    seed_ptr,
    sample_index_ptr,
    position_ptr,
    keys_ptr,
    ids_ptr,
    row_stride,
    vocab,
    first_id,
    MIN_KEY: tl.constexpr,
    FILTERED: tl.constexpr,
    LIST: tl.constexpr,
    BLOCK: tl.constexpr,
    CHUNK: tl.constexpr,
):
    """Program (row, block): the best key of the block's part of the support, and its lowest id.

    Where the whole support is listed, which `listed` says, the first block's program takes the list
    and nobody reads the row. Rows that are not FILTERED have neither pivots nor lists.
    """
    row = tl.program_id(0).to(tl.int64)
    block = tl.program_id(1)
    max_x = tl.load(max_ptr + row)
    seed = tl.load(seed_ptr + row)
    sample_index = tl.load(sample_index_ptr + row).to(tl.uint32)
    position = tl.load(position_ptr + row).to(tl.uint32)
    pivot = tl.cast(MIN_KEY + 1, tl.int32)
    least_id = tl.cast(0, tl.int32)
    least = tl.cast(float("inf"), tl.float32)
    winner = tl.cast(0x7FFFFFFF, tl.int32)
    reads = tl.cast(1, tl.int32)
    if FILTERED:
        pivot = tl.load(pivot_ptr + row)
        least_id = tl.load(least_id_ptr + row)
        listed = tl.load(listed_ptr + row)
        if listed >= 0:
            reads = tl.cast(0, tl.int32)
            if block == 0:
                least, winner = race_of_list(
                    list_ptr + row * LIST, listed, max_x, pivot, least_id, seed, sample_index,
                    position, first_id, CHUNK,
                )  # fmt: skip
    if reads != 0:
        columns = block * BLOCK + tl.arange(0, BLOCK)
        there = columns < vocab
        x = tl.load(x_ptr + row * row_stride + columns, mask=there, other=-float("inf"))
        x = x.to(tl.float32)
        ids = columns + first_id
        words = token_words(block * BLOCK + first_id, seed, sample_index, position, BLOCK)
        keys = exponential(words) * tl.exp(tl.minimum(max_x - x, 80.0))
        least, winner = best_of(keys, ids, kept(x, ids, there, pivot, least_id))
    place = row * tl.num_programs(1) + block
    tl.store(keys_ptr + place, least)
    tl.store(ids_ptr + place, winner)


@triton.jit
def finish_race(keys_ptr, ids_ptr, winner_ptr, blocks, BLOCKS: tl.constexpr):
    """Program row: the id of the least key over the blocks, the lowest among equals."""
    row = tl.program_id(0).to(tl.int64)
    index = tl.arange(0, BLOCKS)
    there = index < blocks
    keys = tl.load(keys_ptr + row * blocks + index, mask=there, other=float("inf"))
    ids = tl.load(ids_ptr + row * blocks + index, mask=there, other=0x7FFFFFFF)
    least = tl.min(keys, axis=0)
    tl.store(winner_ptr + row, tl.min(tl.where(keys == least, ids, 0x7FFFFFFF), axis=0))
