"""Keys between which the edge of a wide support very probably lies, guessed from a sample.

A sample of a row, runs of neighbours evenly spread over it, says how much weighs less than a given
x, and how far that estimate errs. The bracket reaches FIVE standard errors to both sides, unless
more tokens would lie in it than a list holds. What it is right for is checked in exact arithmetic
afterwards (`truncation`): a bracket decides how long a search takes and nothing else.
"""

from __future__ import annotations

import triton
import triton.language as tl

from scoring_service.kernels.gpu.rows import ordered

SAMPLE = 8192
"""Tokens of a sample."""

RUN = tl.constexpr(8)
"""Neighbours that are read together: 32 bytes of fp32, a sector of the cache."""

FIVE = tl.constexpr(5.0)
"""Standard errors on each side: one row in a million lies outside."""

REACH = tl.constexpr(28.0)
"""How far below the best token the edge is looked for: what lies lower weighs nothing."""


@triton.jit
def below(x, weights, edge):
    """What the tokens of a sample that lie below an edge weigh."""
    return tl.sum(tl.where(x < edge, weights, 0.0), axis=0)


@triton.jit
def bracket(
    x_ptr, vocab, max_x, lower, counted, first, top_key, SAMPLE: tl.constexpr, LIST: tl.constexpr
):
    """A bracket of keys, within [first, top_key], around the x below which tokens weigh `lower`.

    They weigh 1 each where they are `counted`, else exp(x - max). The row is longer than SAMPLE.
    """
    index = tl.arange(0, SAMPLE)
    start = (index // RUN).to(tl.int64) * vocab // (SAMPLE // RUN)
    x = tl.load(x_ptr + start + index % RUN).to(tl.float32)
    weights = tl.where(counted, 1.0, tl.exp(x - max_x))
    scale = vocab.to(tl.float32) / SAMPLE
    wanted = lower / scale

    center = max_x - REACH
    end = max_x
    for _ in range(14):
        middle = 0.5 * (center + end)
        if below(x, weights, middle) <= wanted:
            center = middle
        else:
            end = middle
    mass = below(x, weights, center)
    variance = below(x, weights * weights, center) - mass * mass / SAMPLE
    # Of a tail that the sample hardly meets the deviation says little: one token more.
    one = tl.where(counted, 1.0, tl.exp(center - max_x))
    slack = FIVE * (tl.sqrt(tl.maximum(variance, 0.0)) + one)
    total = tl.sum(weights, axis=0)

    low = first
    high = top_key
    tries = 0
    while tries < 2:
        left = center - 0.25 * (max_x - center)
        left_end = center
        right = center + 0.25 * (max_x - center)
        right_start = center
        for _ in range(8):
            middle = 0.5 * (left + left_end)
            if below(x, weights, middle) <= wanted - slack:
                left = middle
            else:
                left_end = middle
            middle = 0.5 * (right_start + right)
            if below(x, weights, middle) >= wanted + slack:
                right = middle
            else:
                right_start = middle
        low = first
        if wanted > slack:
            low = tl.maximum(first, tl.minimum(ordered(left), top_key))
        high = top_key
        if wanted + slack < total:
            high = tl.maximum(low, tl.minimum(ordered(right), top_key))
        keys = ordered(x)
        inside = tl.sum(((keys >= low) & (keys <= high)).to(tl.float32), axis=0)
        room = (LIST - LIST // 8) / scale
        tries += 1
        if inside > room:
            slack = slack * (room / inside)
        else:
            tries = 2
    return low, high
