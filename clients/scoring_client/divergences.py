"""Divergences between distributions over the same events, in numpy: no torch is needed.

The twin of ``losses``, which computes the same from a student's logits with gradients. Arrays are
log-masses [..., M] in nats over M disjoint events: the tokens of a top-K list or of the union of
two, and last the tail that holds everything else. An event that is not there is -inf in both.
Everything is computed in float64. P is the teacher, Q the student.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Float64Array = npt.NDArray[np.float64]

TAIL_RESOLUTION = 1e-4
"""Share of a tail that a subtraction still resolves: tails are right to 1e-5."""


def forward_kl(teacher: npt.ArrayLike, student: npt.ArrayLike) -> Float64Array:
    """Return KL(P || Q) = sum p (log p - log q), float64 [...].

    In [0, ∞] for distributions; 0 exactly when they are equal; not symmetric. On a list with its
    tail it is at most the divergence over the whole vocabulary, and equal to it at K = V.

    Args:
        teacher: Log-masses of P, [..., M].
        student: Log-masses of Q, [..., M].

    Raises:
        ValueError: the shapes differ.
    """
    p, q = _pair(teacher, student)
    with np.errstate(invalid="ignore"):
        return _total(np.where(p == -np.inf, 0.0, np.exp(p) * (p - q)))


def reverse_kl(teacher: npt.ArrayLike, student: npt.ArrayLike) -> Float64Array:
    """Return KL(Q || P): ``forward_kl`` with the two exchanged."""
    return forward_kl(student, teacher)


def generalized_js(
    teacher: npt.ArrayLike,
    student: npt.ArrayLike,
    alpha: float = 0.5,
    *,
    normalize: bool = False,
) -> Float64Array:
    """Return α KL(P || M) + (1 - α) KL(Q || M) with M = α P + (1 - α) Q, float64 [...].

    The generalised Jensen-Shannon divergence (Lin 1991; GKD, Agarwal et al. 2024, with β = α). In
    [0, H(α)], H the binary entropy, at most log 2; 0 exactly when P and Q are equal; unchanged when
    P and Q and α and 1 - α change places, so symmetric at α = 1/2. It vanishes as α → 0 like
    α KL(P || Q), and as α → 1 like (1 - α) KL(Q || P).

    Args:
        teacher: Log-masses of P, [..., M].
        student: Log-masses of Q, [..., M].
        alpha: Weight of P, in (0, 1); with ``normalize`` in [0, 1].
        normalize: Divide by α (1 - α), which makes the limits forward KL (α = 0) and reverse KL
            (α = 1), and four times the divergence at α = 1/2.

    Raises:
        ValueError: the shapes differ, or alpha is out of range.
    """
    check_alpha(alpha, normalize)
    if alpha in (0, 1):
        return forward_kl(teacher, student) if alpha == 0 else reverse_kl(teacher, student)
    p, q = _pair(teacher, student)
    with np.errstate(invalid="ignore"):
        # log m - log of the larger of p and q: exactly 0 where they are equal.
        gap = np.where(p == q, 0.0, np.abs(p - q))
        to_larger = np.log1p(np.where(p > q, 1 - alpha, alpha) * np.expm1(-gap))
        m_over_p = np.where(p > q, to_larger, to_larger + gap)
        m_over_q = np.where(p > q, to_larger + gap, to_larger)
        from_p = np.where(p == -np.inf, 0.0, -np.exp(p) * m_over_p)
        from_q = np.where(q == -np.inf, 0.0, -np.exp(q) * m_over_q)
    value = _total(alpha * from_p + (1 - alpha) * from_q)
    return value / (alpha * (1 - alpha)) if normalize else value


def soft_cross_entropy(logprobs: npt.ArrayLike, weights: npt.ArrayLike) -> Float64Array:
    """Return -sum w log q over targets, float64 [...].

    Args:
        logprobs: The student's log-probs of the targets, [..., K].
        weights: The targets' weights, [..., K]; a target of weight 0 counts for nothing.

    Raises:
        ValueError: the shapes differ.
    """
    logprobs_K, weights_K = _pair(logprobs, weights)
    with np.errstate(invalid="ignore"):
        return -_total(np.where(weights_K == 0, 0.0, weights_K * logprobs_K))


def top_k_buckets(
    student_logprobs: npt.ArrayLike,
    token_ids: npt.ArrayLike,
    teacher_logprobs: npt.ArrayLike,
    log_tail_masses: npt.ArrayLike,
    candidate_ids: npt.ArrayLike | None = None,
    candidate_logprobs: npt.ArrayLike | None = None,
) -> tuple[Float64Array, Float64Array]:
    """Return teacher and student over a top-K list, the candidates outside it, and the tail.

    The tail holds everything else: the teacher's is the server's tail mass less what the candidates
    took out of it, the student's is summed. A row in which less than 1e-4 of the teacher's tail is
    left, where a difference says nothing any more, does without its candidates: coarser, and exact.

    Args:
        student_logprobs: The student's log-probs over the vocabulary, [N, V].
        token_ids: The teacher's list, [N, K]; an id stands once in a row.
        teacher_logprobs: [N, K].
        log_tail_masses: [N].
        candidate_ids: Further ids, such as the student's own top-C, [N, C]; -1 = none.
        candidate_logprobs: The teacher's log-probs there, [N, C].

    Returns:
        Log-masses of teacher and student, float64 [N, K + C + 1].
    """
    q_N_V = np.array(student_logprobs, dtype=np.float64)
    ids_N_M = np.asarray(token_ids)
    p_N_M = np.asarray(teacher_logprobs, dtype=np.float64)
    tail_N = np.array(log_tail_masses, dtype=np.float64)
    if candidate_ids is not None and candidate_logprobs is not None:
        new_N_C = _first_seen(ids_N_M, np.asarray(candidate_ids))
        taken_N_C = np.where(new_N_C, np.asarray(candidate_logprobs, dtype=np.float64), -np.inf)
        with np.errstate(invalid="ignore", divide="ignore"):
            share_N = np.exp(taken_N_C - tail_N[:, None]).sum(axis=1)
            resolved_N = share_N < 1 - TAIL_RESOLUTION
            tail_N = np.where(resolved_N, tail_N + np.log1p(-share_N), tail_N)
        used_N_C = new_N_C & resolved_N[:, None]
        ids_N_M = np.concatenate([ids_N_M, np.where(used_N_C, candidate_ids, -1)], axis=1)
        p_N_M = np.concatenate([p_N_M, np.where(used_N_C, taken_N_C, -np.inf)], axis=1)
    rows_N_1 = np.arange(len(q_N_V))[:, None]
    q_N_M = np.where(ids_N_M >= 0, q_N_V[rows_N_1, ids_N_M], -np.inf)
    listed_N_V = np.zeros(q_N_V.shape, dtype=bool)
    np.logical_or.at(listed_N_V, (rows_N_1, np.maximum(ids_N_M, 0)), ids_N_M >= 0)
    with np.errstate(divide="ignore"):
        q_tail_N = np.log(np.where(listed_N_V, 0.0, np.exp(q_N_V)).sum(axis=1))
    return (
        np.concatenate([p_N_M, tail_N[:, None]], axis=1),
        np.concatenate([q_N_M, q_tail_N[:, None]], axis=1),
    )


@dataclass(frozen=True, slots=True)
class Mismatch:
    """Estimates of KL(sampler || trainer), nats a token; see ``mismatch.MismatchKL``."""

    k1: float
    """Mean of -log r."""
    k2: float
    """Mean of (log r)² / 2."""
    k3: float
    """Mean of r - 1 - log r."""
    max_k3: float
    """Largest r - 1 - log r of all tokens."""
    tokens: int
    """How many tokens were compared."""


def mismatch_kl(
    trainer: npt.ArrayLike, sampler: npt.ArrayLike, mask: npt.ArrayLike | None = None
) -> Mismatch:
    """Compare a trainer's log-probs of drawn tokens with the sampler's.

    Args:
        trainer: [..., T].
        sampler: [..., T].
        mask: bool or 0 and 1, [..., T].

    Raises:
        ValueError: the shapes differ, or there is no token to compare.
    """
    trainer_T, sampler_T = _pair(trainer, sampler)
    wanted = np.ones(trainer_T.shape, bool) if mask is None else np.asarray(mask).astype(bool)
    if wanted.shape != trainer_T.shape:
        raise ValueError(f"the mask has shape {wanted.shape} for {trainer_T.shape}")
    if not wanted.any():
        raise ValueError("there is no token to compare: the mask is empty")
    log_ratio = trainer_T[wanted] - sampler_T[wanted]
    k3 = np.expm1(log_ratio) - log_ratio
    return Mismatch(
        k1=float(-log_ratio.mean()),
        k2=float(np.square(log_ratio).mean() / 2),
        k3=float(k3.mean()),
        max_k3=float(k3.max()),
        tokens=int(wanted.sum()),
    )


def check_alpha(alpha: float, normalize: bool) -> None:
    """Refuse an α for which the divergence is 0 whatever the distributions.

    Raises:
        ValueError: it is out of range.
    """
    if normalize and not 0 <= alpha <= 1:
        raise ValueError(f"alpha must be in [0, 1], got {alpha}")
    if not normalize and not 0 < alpha < 1:
        raise ValueError(
            f"alpha must be in (0, 1), got {alpha}: at 0 and 1 the divergence vanishes; "
            "normalize=True gives its limits, forward and reverse KL"
        )


def _pair(first: npt.ArrayLike, second: npt.ArrayLike) -> tuple[Float64Array, Float64Array]:
    one, two = np.asarray(first, dtype=np.float64), np.asarray(second, dtype=np.float64)
    if one.shape != two.shape:
        raise ValueError(f"the shapes differ: {list(one.shape)} and {list(two.shape)}")
    return one, two


def _total(terms: npt.NDArray[Any]) -> Float64Array:
    return np.asarray(terms.sum(axis=-1), dtype=np.float64)


def _first_seen(ids_N_K: npt.NDArray[Any], more_N_C: npt.NDArray[Any]) -> npt.NDArray[np.bool_]:
    """Which of further ids [N, C] are asked, in no list before them, and not repeated."""
    new_N_C = more_N_C >= 0
    for column in range(more_N_C.shape[1]):
        before = np.concatenate([ids_N_K, more_N_C[:, :column]], axis=1)
        new_N_C[:, column] &= ~(before == more_N_C[:, column : column + 1]).any(axis=1)
    return new_N_C
