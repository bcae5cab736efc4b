"""Where weights of tokens that one program holds, added up from the largest key down, reach a
target: the edge of a support, once few tokens are left that it can lie among.

The tokens are in registers: a step of the search is one sum over them, and their order in the list
they came from means nothing. Weights are integers, so the answer does not depend on the order of
addition either.
"""

from __future__ import annotations

import triton
import triton.language as tl

from scoring_service.kernels.gpu.rows import nucleus_mass, unordered
from scoring_service.kernels.gpu.search import weights_of

FEW = tl.constexpr(64)
"""Tokens that are all compared with each other, which takes one step."""


@triton.jit
def greatest_reaching(keys, weights, low, high, target):
    """The greatest key of [low, high] from which on the weights reach a target; else `low`."""
    if keys.shape[0] <= FEW:
        heavier = keys[None, :] >= keys[:, None]
        reached = tl.sum(tl.where(heavier, weights[None, :], 0), axis=1) >= target
        best = tl.max(tl.where(reached & (keys <= high), keys, -0x80000000), axis=0)
        low = tl.maximum(low, best)
        high = low
    while low < high:
        # Halfway, rounded up. Keys of both signs lie further apart than int32 reaches.
        distance = high.to(tl.int64) - low.to(tl.int64)
        middle = (high.to(tl.int64) - distance // 2).to(tl.int32)
        if tl.sum(tl.where(keys >= middle, weights, 0), axis=0) >= target:
            low = middle
        else:
            high = middle - 1
    return low


@triton.jit
def target_of(whole, share):
    """The mass that a nucleus has to reach where `share` = 1 - p of the whole may be left out."""
    return tl.maximum(whole - (share * whole.to(tl.float64)).to(tl.int64), 1)


@triton.jit
def listed_tokens(list_ptr, listed, max_x, N: tl.constexpr):
    """Keys and masses of the tokens of a list of sort keys; N at least as many. Absent ones come
    last and weigh nothing.
    """
    index = tl.arange(0, N)
    packed = tl.load(list_ptr + index, mask=index < listed, other=-0x8000000000000000)
    keys = (packed >> 32).to(tl.int32)
    return keys, weights_of(keys, max_x, "mass")


@triton.jit
def edge_among(keys, masses, low, high, above, target, max_x):
    """The edge of a nucleus in [low, high], where tokens above `high` that are not held weigh
    `above`.

    Returns:
        The pivot, how many of its ties stay, how many there are, the mass of what stays, and how
        many of the tokens held do.
    """
    pivot = greatest_reaching(keys, masses, low, high, target - above)
    larger = keys > pivot
    kept = above + tl.sum(tl.where(larger, masses, 0), axis=0)
    ties = tl.sum((keys == pivot).to(tl.int32), axis=0)
    # Ties share one mass; as many as reach the target stay.
    mass = tl.maximum(nucleus_mass(unordered(pivot), max_x), 1)
    staying = tl.minimum((target - kept + mass - 1) // mass, ties.to(tl.int64)).to(tl.int32)
    size = tl.sum(larger.to(tl.int32), axis=0) + staying
    return pivot, staying, ties, kept + staying * mass, size


@triton.jit
def least_staying(list_ptr, listed, pivot, staying, vocab, N: tl.constexpr):
    """The least of the `staying` highest ids among the ties of a pivot."""
    index = tl.arange(0, N)
    there = index < listed
    packed = tl.load(list_ptr + index, mask=there, other=-0x8000000000000000)
    ids = (0x7FFFFFFF - (packed & 0xFFFFFFFF)).to(tl.int32)
    tied = tl.where(there & ((packed >> 32).to(tl.int32) == pivot), ids, -1)
    ones = tl.full((N,), 1, tl.int32)
    return greatest_reaching(tied, ones, tl.cast(0, tl.int32), vocab - 1, staying)
