"""Teacher and student over the same few events: a list, candidates beside it, and the tail.

Legend: N rows, V vocabulary, K top-K, C candidates, M = K + C events. Needs torch.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from scoring_client.training.numpy_buckets import TAIL_RESOLUTION, Tail


class Buckets(NamedTuple):
    """Log-masses in nats of the same events; -inf in both for one that is not there."""

    teacher: Tensor
    """[N, M], or [N, M + 1] with the tail last."""
    student: Tensor
    """Of the same shape, with gradients."""


def buckets(
    x_N_V: Tensor,
    *,
    token_ids: Tensor,
    logprobs: Tensor,
    log_tail_masses: Tensor | None,
    candidate_ids: Tensor | None,
    candidate_logprobs: Tensor | None,
    tail: Tail,
) -> Buckets:
    """Return both models over the union of a list and candidates.

    The student's masses come from its logits, its tail too: summed over what is outside, not
    1 - sum. The teacher's tail is the server's, less what candidates took out of it; a row where
    less than 1e-4 of it is left, where the difference would be rounding, does without candidates
    (see TAIL_RESOLUTION for how exact it is until then).

    Args:
        x_N_V: The student's logits / temperature.
        token_ids: See TeacherRows, as the other tensors.
        logprobs: [N, K].
        log_tail_masses: [N]; needed for ``bucket``.
        candidate_ids: [N, C].
        candidate_logprobs: [N, C].
        tail: What becomes of the rest.
    """
    valid_N_M, ids_N_M, p_N_M = token_ids >= 0, token_ids, logprobs.to(x_N_V.dtype)
    tail_N = None if log_tail_masses is None else log_tail_masses.to(x_N_V.dtype)
    if candidate_ids is not None and candidate_logprobs is not None:
        ids_N_M = torch.cat([token_ids, candidate_ids], dim=1)
        p_N_M = torch.cat([p_N_M, candidate_logprobs.to(x_N_V.dtype)], dim=1)
        valid_N_M = _first_seen(ids_N_M)
        if tail == "bucket" and tail_N is not None:
            beside = slice(token_ids.shape[1], None)
            taken_N_C = p_N_M[:, beside].masked_fill(~valid_N_M[:, beside], -math.inf)
            tail_N, resolved_N = _less(tail_N, taken_N_C)
            valid_N_M[:, beside] &= resolved_N[:, None]
    logsumexp_N_1 = x_N_V.logsumexp(dim=1, keepdim=True)
    safe_ids_N_M = ids_N_M.clamp(min=0)
    q_N_M = (x_N_V.gather(1, safe_ids_N_M) - logsumexp_N_1).masked_fill(~valid_N_M, -math.inf)
    p_N_M = p_N_M.masked_fill(~valid_N_M, -math.inf)
    if tail == "renormalize":
        return Buckets(p_N_M.log_softmax(dim=1), q_N_M.log_softmax(dim=1))
    if tail == "drop" or tail_N is None:
        return Buckets(p_N_M, q_N_M)
    listed_N_V = torch.zeros_like(x_N_V, dtype=torch.int32)
    listed_N_V.scatter_add_(1, safe_ids_N_M, valid_N_M.int())
    q_tail_N = _logsumexp_or_nothing(x_N_V.masked_fill(listed_N_V > 0, -math.inf))
    q_tail_N_1 = q_tail_N[:, None] - logsumexp_N_1
    return Buckets(
        torch.cat([p_N_M, tail_N[:, None]], dim=1), torch.cat([q_N_M, q_tail_N_1], dim=1)
    )


def _logsumexp_or_nothing(x_N_V: Tensor) -> Tensor:
    """logsumexp [N] whose gradient is 0, not NaN, in a row that is -inf throughout."""
    empty_N_1 = (x_N_V == -math.inf).all(dim=1, keepdim=True)
    total_N = x_N_V.masked_fill(empty_N_1, 0.0).logsumexp(dim=1)
    return total_N.masked_fill(empty_N_1[:, 0], -math.inf)


def _first_seen(ids_N_M: Tensor) -> Tensor:
    """Whether an id is one (not negative) and stands at no earlier place of its row."""
    sorted_ids, order = ids_N_M.sort(dim=1, stable=True)
    repeated = torch.zeros_like(sorted_ids, dtype=torch.bool)
    repeated[:, 1:] = sorted_ids[:, 1:] == sorted_ids[:, :-1]
    return ~torch.empty_like(repeated).scatter_(1, order, repeated) & (ids_N_M >= 0)


def _less(log_tail_N: Tensor, taken_N_C: Tensor) -> tuple[Tensor, Tensor]:
    """log(tail - sum of what was taken), and whether the difference still says something."""
    share_N = (taken_N_C - log_tail_N[:, None]).exp().sum(dim=1)
    resolved_N = share_N < 1 - TAIL_RESOLUTION
    left_N = log_tail_N + torch.log1p(-share_N.masked_fill(~resolved_N, 0.0))
    return left_N, resolved_N


def union_with_floor(
    x_N_V: Tensor,
    *,
    token_ids: Tensor,
    logprobs: Tensor,
    candidate_ids: Tensor,
    floor: float,
    **_: Tensor | None,
) -> Buckets:
    """Return both models over the union of two lists, each at a floor where its list has a gap.

    Args:
        x_N_V: The student's logits / temperature.
        token_ids: The teacher's list, [N, K].
        logprobs: [N, K].
        candidate_ids: The student's list, [N, C].
        floor: Log-prob of a token that a list lacks.
    """
    ids_N_M = torch.cat([token_ids, candidate_ids], dim=1)
    valid_N_M = _first_seen(ids_N_M)
    p_N_M = torch.cat([logprobs, torch.full_like(candidate_ids, floor, dtype=logprobs.dtype)], 1)
    listed_N_V = torch.zeros_like(x_N_V, dtype=torch.int32)
    listed_N_V.scatter_add_(1, candidate_ids.clamp(min=0), (candidate_ids >= 0).int())
    safe_ids_N_M = ids_N_M.clamp(min=0)
    q_N_M = x_N_V.gather(1, safe_ids_N_M) - x_N_V.logsumexp(dim=1, keepdim=True)
    q_N_M = q_N_M.masked_fill(listed_N_V.gather(1, safe_ids_N_M) == 0, floor)
    return Buckets(
        p_N_M.to(x_N_V.dtype).masked_fill(~valid_N_M, -math.inf),
        q_N_M.masked_fill(~valid_N_M, -math.inf),
    )
