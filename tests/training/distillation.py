"""Random teachers and students, and the divergences written from their definitions, in float64."""

from __future__ import annotations

import math
from collections.abc import Callable
from decimal import Decimal, localcontext

import torch
from torch import Tensor

from scoring_client.losses import TeacherRows

Divergence = Callable[[Tensor, Tensor], Tensor]


def teacher_of(logprobs_N_V: Tensor, k: int, candidate_ids: Tensor | None = None) -> TeacherRows:
    """What a server would answer for these distributions."""
    top = logprobs_N_V.topk(k, dim=1)
    rest = logprobs_N_V.scatter(1, top.indices, -math.inf)
    at_candidates = None
    if candidate_ids is not None:
        at_candidates = logprobs_N_V.gather(1, candidate_ids.clamp(min=0))
        at_candidates = at_candidates.masked_fill(candidate_ids < 0, math.nan)
    return TeacherRows(
        token_ids=top.indices,
        logprobs=top.values,
        log_tail_masses=rest.logsumexp(dim=1),
        candidate_ids=candidate_ids,
        candidate_logprobs=at_candidates,
    )


def pair(rows: int = 6, vocab: int = 30, seed: int = 0) -> tuple[Tensor, Tensor]:
    """The teacher's log-probs and the student's logits, float64 [N, V]."""
    generator = torch.Generator().manual_seed(seed)
    teacher = 2 * torch.randn(rows, vocab, dtype=torch.float64, generator=generator)
    student = 2 * torch.randn(rows, vocab, dtype=torch.float64, generator=generator)
    return teacher.log_softmax(1), student.requires_grad_(True)


def merged(probs_V: Tensor, listed: list[int]) -> Tensor:
    """The probabilities of the listed tokens, and of all others as one event."""
    others = [v for v in range(len(probs_V)) if v not in listed]
    tail = probs_V[others].sum().reshape(1) if others else probs_V[:0]
    return torch.cat([probs_V[listed], tail])


def truth(
    divergence: Divergence, teacher_N_V: Tensor, logits_N_V: Tensor, listed: list[list[int]]
) -> Tensor:
    """A divergence of the merged distributions, row by row; differentiable by autograd alone."""
    rows = zip(teacher_N_V.exp(), logits_N_V.softmax(1), listed, strict=True)
    return torch.stack([divergence(merged(p, ids), merged(q, ids)) for p, q, ids in rows])


def kl(p: Tensor, q: Tensor) -> Tensor:
    return (p * (p.log() - q.log())).sum()


def reverse(p: Tensor, q: Tensor) -> Tensor:
    return kl(q, p)


def exact_js(log_p_M: list[float], log_q_M: list[float], alpha: float) -> tuple[float, list[float]]:
    """Of one row from the definition in 60 digits, over alpha (1 - alpha), as it is near the ends.

    And the derivatives by the student's logits, q_i (log(q_i / m_i) - sum of q log(q / m)) / alpha.
    """
    with localcontext() as context:
        context.prec = 60
        a = Decimal(alpha)
        p_M, q_M = (
            [Decimal(x).exp() if x > -math.inf else Decimal(0) for x in side]
            for side in (log_p_M, log_q_M)
        )
        m_M = [a * p + (1 - a) * q for p, q in zip(p_M, q_M, strict=True)]
        from_p = sum(p * (p / m).ln() for p, m in zip(p_M, m_M, strict=True) if p)
        over_m_M = [(q / m).ln() if q else Decimal(0) for q, m in zip(q_M, m_M, strict=True)]
        from_q = sum(q * log for q, log in zip(q_M, over_m_M, strict=True))
        gradient_M = [float(q * (log - from_q) / a) for q, log in zip(q_M, over_m_M, strict=True)]
        return float((a * from_p + (1 - a) * from_q) / (a * (1 - a))), gradient_M


def js(alpha: float) -> Divergence:
    def divergence(p: Tensor, q: Tensor) -> Tensor:
        m = alpha * p + (1 - alpha) * q
        return alpha * kl(p, m) + (1 - alpha) * kl(q, m)

    return divergence
