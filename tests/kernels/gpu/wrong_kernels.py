"""Small kernels that are wrong in ways that shipped elsewhere, and right with MODE "right".

One block holds a whole row.
"""

from __future__ import annotations

import triton
import triton.language as tl

from scoring_service.kernels.gpu.race import exponential, token_words

MAX_SQUARE = 64
"""Tokens of a row, at most, that a kernel here compares with every other. The interpreter makes
arrays of [1024, 1024]; the compiler, which keeps them in registers, does not end."""


@triton.jit
def race_in(x, inside, columns, max_x, seed, sample, position, BLOCK: tl.constexpr):
    words = token_words(0, seed, sample, position, BLOCK)
    keys = exponential(words) * tl.exp(tl.minimum(max_x - x, 80.0))
    keys = tl.where(inside, keys, float("inf"))
    return tl.min(tl.where(keys == tl.min(keys, axis=0), columns, BLOCK), axis=0)


@triton.jit
def draw(
    x_ptr, keep_ptr, seed_ptr, sample_ptr, position_ptr, winner_ptr, vocab,
    MODE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """A token of each row, from a support given as a mask.

    "value": the winner is found again by its logit. "fallback": from the full vocabulary, greedy
    after 8 tries. "rejection": from the full vocabulary, whatever comes after 2 tries. "row" and
    "batch": the stream depends on the row's number, or on how many rows there are. "one seed": the
    first row's serves all. "advancing": every launch leaves the counter one further on. "all": rows
    are truncated only if every row of the batch is.
    """
    row = tl.program_id(0)
    columns = tl.arange(0, BLOCK)
    there = columns < vocab
    x = tl.load(x_ptr + row * vocab + columns, mask=there, other=-float("inf"))
    keep = tl.load(keep_ptr + row * vocab + columns, mask=there, other=0) != 0
    seed = tl.load(seed_ptr + row)
    sample = tl.load(sample_ptr + row).to(tl.uint32)
    position = tl.load(position_ptr + row).to(tl.uint32)
    max_x = tl.max(x, axis=0)
    if MODE == "one seed":
        seed = tl.load(seed_ptr)
    if MODE == "advancing":
        tl.store(sample_ptr + row, tl.load(sample_ptr + row) + 1)
    if MODE == "row":
        sample += row.to(tl.uint32)
    if MODE == "batch":
        sample += tl.num_programs(0).to(tl.uint32)
    if MODE == "all":
        for other in range(tl.num_programs(0)):
            mask = tl.load(keep_ptr + other * vocab + columns, mask=there, other=0) != 0
            truncated = tl.sum((there & (mask == 0)).to(tl.int32), axis=0)
            if truncated == 0:
                keep = there
    if (MODE == "fallback") | (MODE == "rejection"):
        tries = 8 if MODE == "fallback" else 2
        winner = tl.min(tl.where(x == max_x, columns, BLOCK), axis=0)
        accepted = 0
        for attempt in range(tries):
            token = race_in(
                x, there, columns, max_x, seed, sample + attempt * 7919, position, BLOCK
            )
            inside = tl.sum(tl.where(columns == token, keep.to(tl.int32), 0), axis=0)
            if accepted == 0:
                if (inside != 0) | (MODE == "rejection"):
                    winner = token
                accepted = inside
    else:
        winner = race_in(x, keep, columns, max_x, seed, sample, position, BLOCK)
    if MODE == "value":
        value = tl.sum(tl.where(columns == winner, x, 0.0), axis=0)
        winner = tl.min(tl.where(x == value, columns, BLOCK), axis=0)
    tl.store(winner_ptr + row, winner)


@triton.jit
def truncate(
    x_ptr, top_k_ptr, top_p_ptr, min_p_ptr, keep_ptr, vocab,
    MODE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """The support of each row as a mask.

    "full mass": top-p of the whole vocabulary. "lower ids": ties at the nucleus's edge the other
    way round. "exactly k": ties at the k-th value are cut. "one min-p": a row without min-p gets
    1e-20 as soon as another has it. "fp32": the nucleus in fp32 sums.
    """
    row = tl.program_id(0)
    columns = tl.arange(0, BLOCK)
    there = columns < vocab
    x = tl.load(x_ptr + row * vocab + columns, mask=there, other=-float("inf"))
    k = tl.load(top_k_ptr + row)
    p = tl.load(top_p_ptr + row)
    min_p = tl.load(min_p_ptr + row)
    # [token, other]: others that come before a token.
    larger = (x[None, :] > x[:, None]) & there[None, :]
    ties = (x[None, :] == x[:, None]) & there[None, :]
    if MODE == "exactly k":
        larger_or_lower = larger | (ties & (columns[None, :] < columns[:, None]))
        listed = tl.sum(larger_or_lower.to(tl.int32), axis=1) < k
    else:
        listed = tl.sum(larger.to(tl.int32), axis=1) < k
    keep = there & (x > -float("inf"))
    if k > 0:
        keep = keep & listed
    max_x = tl.max(x, axis=0)
    below = x.to(tl.float64) - max_x.to(tl.float64)
    mass = (tl.exp(below) * 1099511627776.0).to(tl.int64)
    if MODE == "fp32":
        mass = tl.exp(x - max_x)
    mass = tl.where(there if MODE == "full mass" else keep, mass, 0)
    total = tl.sum(mass, axis=0)
    if MODE == "lower ids":
        before = larger | (ties & (columns[None, :] < columns[:, None]))
    else:
        before = larger | (ties & (columns[None, :] > columns[:, None]))
    if MODE == "full mass":
        before = before & keep[None, :]
    above = tl.sum(tl.where(before, mass[None, :], 0), axis=1)
    if MODE == "fp32":
        nucleus = above < total - (1.0 - p.to(tl.float32)) * total
    else:
        target = total - ((1.0 - p) * total.to(tl.float64)).to(tl.int64)
        nucleus = (above < target) | (x == max_x) & (above == 0)
    if p < 1.0:
        keep = keep & nucleus
    if MODE == "one min-p":
        for other in range(tl.num_programs(0)):
            if tl.load(min_p_ptr + other) > 0:
                min_p = tl.maximum(min_p, 1e-20)
    if min_p > 0:
        keep = keep & (below >= tl.log(min_p))
    tl.store(keep_ptr + row * vocab + columns, keep.to(tl.int8), mask=there)


@triton.jit
def number(
    x_ptr, targets_ptr, result_ptr, vocab, k, MODE: tl.constexpr, BLOCK: tl.constexpr
):  # fmt: skip
    """A number of each row: rank or log-prob of its target, or log tail mass of its top k.

    "rank": right. "rank of the worst tie": counts >=. "log-prob": right. "floored log-prob":
    rebuilt from the top k, -20 outside. "tail by difference": log(1 - sum) in fp32. "rank below k":
    only ids below k are ranked. "guarded" and "unguarded": log-prob after top-k, which the target
    joins, or not.
    """
    row = tl.program_id(0)
    columns = tl.arange(0, BLOCK)
    there = columns < vocab
    x = tl.load(x_ptr + row * vocab + columns, mask=there, other=-float("inf"))
    target = tl.load(targets_ptr + row)
    own = tl.sum(tl.where(columns == target, x, 0.0), axis=0)
    before = (x > own) | ((x == own) & (columns < target))
    rank = 1 + tl.sum(before.to(tl.int32), axis=0)
    max_x = tl.max(x, axis=0)
    log_total = max_x + tl.log(tl.sum(tl.exp(x - max_x), axis=0))
    if MODE == "rank":
        result = rank.to(tl.float32)
    elif MODE == "rank of the worst tie":
        result = tl.sum((there & (x >= own)).to(tl.float32), axis=0)
    elif MODE == "rank below k":
        result = 1 + tl.sum((before & (columns < k)).to(tl.float32), axis=0)
    elif (MODE == "guarded") | (MODE == "unguarded"):
        larger = (x[None, :] > x[:, None]) & there[None, :]
        keep = there & (tl.sum(larger.to(tl.int32), axis=1) < k)
        if MODE == "guarded":
            keep = keep | (columns == target)
        log_kept = max_x + tl.log(tl.sum(tl.where(keep, tl.exp(x - max_x), 0.0), axis=0))
        inside = tl.sum(tl.where(columns == target, keep.to(tl.int32), 0), axis=0)
        result = tl.where(inside != 0, own - log_kept, -float("inf"))
    elif MODE == "log-prob":
        result = own - log_total
    elif MODE == "floored log-prob":
        result = tl.where(rank <= k, own - log_total, -20.0)
    else:
        listed = (x > own) | ((x == own) & (columns <= target))
        result = tl.log(1.0 - tl.sum(tl.where(listed, tl.exp(x - log_total), 0.0), axis=0))
    tl.store(result_ptr + row, result)


@triton.jit
def logprobs_at(
    x_ptr, ids_ptr, result_ptr, vocab, rows, candidates, MODE: tl.constexpr, BLOCK: tl.constexpr
):  # fmt: skip
    """Program (row * candidates): the log-prob at one of a row's ids.

    "flattened": candidates are counted as rows, which begin again after the last one.
    """
    place = tl.program_id(0)
    row = place // candidates
    if MODE == "flattened":
        row = place % rows
    columns = tl.arange(0, BLOCK)
    x = tl.load(x_ptr + row * vocab + columns, mask=columns < vocab, other=-float("inf"))
    max_x = tl.max(x, axis=0)
    log_total = max_x + tl.log(tl.sum(tl.exp(x - max_x), axis=0))
    own = tl.sum(tl.where(columns == tl.load(ids_ptr + place), x, 0.0), axis=0)
    tl.store(result_ptr + place, own - log_total)


@triton.jit
def attend_parts(
    scores_ptr, values_ptr, sinks_ptr, result_ptr,
    MODE: tl.constexpr, PART: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Program (row, head): a softmax over BLOCK scores and a sink, by parts that are joined.

    "sink in each part": as often as there are parts. "not rescaled": each part's weights are
    relative to its own largest. "mean of parts": each as if it were all there is.
    """
    head = tl.program_id(1)
    row = tl.program_id(0) * tl.num_programs(1) + head
    sink = tl.load(sinks_ptr + head)
    top = sink
    total = tl.exp(sink - top)
    result = total * 0.0
    seen = total * 0.0
    for begin in range(0, BLOCK, PART):
        columns = begin + tl.arange(0, PART)
        scores = tl.load(scores_ptr + row * BLOCK + columns)
        values = tl.load(values_ptr + row * BLOCK + columns)
        part_top = tl.max(scores, axis=0)
        if part_top > -float("inf"):
            if MODE == "sink in each part":
                part_top = tl.maximum(part_top, sink)
            weights = tl.exp(scores - part_top)
            part_total = tl.sum(weights, axis=0)
            if MODE == "sink in each part":
                part_total += tl.exp(sink - part_top)
            part_result = tl.sum(weights * values, axis=0)
            if MODE == "not rescaled":
                result += part_result
                total += part_total
            elif MODE == "mean of parts":
                result += part_result / part_total
                seen += 1.0
            else:
                new_top = tl.maximum(top, part_top)
                result = result * tl.exp(top - new_top) + part_result * tl.exp(part_top - new_top)
                total = total * tl.exp(top - new_top) + part_total * tl.exp(part_top - new_top)
                top = new_top
    if MODE == "mean of parts":
        total = seen
    tl.store(result_ptr + row, result / total)
