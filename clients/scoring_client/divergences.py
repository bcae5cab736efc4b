"""Divergences between distributions over the same events, in numpy: no torch is needed.

The twin of ``losses``, which computes the same from a student's logits with gradients: its ``tail``
and ``floor`` are ``top_k_buckets`` and ``union_with_floor``, its masks and means yours. Arrays are
log-masses [..., M] in nats over M disjoint events: the tokens of a top-K list or of the union of
two, and last the tail that holds everything else. An event that is not there is -inf in both.
Everything is computed in float64. P is the teacher, Q the student.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from scoring_client.training.numpy_buckets import top_k_buckets, union_with_floor
from scoring_client.values.arrays import Float64Array

__all__ = [
    "Mismatch",
    "check_alpha",
    "forward_kl",
    "generalized_js",
    "mismatch_kl",
    "reverse_kl",
    "soft_cross_entropy",
    "top_k_buckets",
    "union_with_floor",
]


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
        terms = np.where(p == -np.inf, 0.0, np.exp(p) * (p - q))
    # Also where the mass is so small that it is 0 in float64.
    return _total(np.where((p > -np.inf) & (q == -np.inf), np.inf, terms))


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
        gap = np.where(p == q, 0.0, p - q)
        m_over_p = _log_mixed(-gap, 1 - alpha, alpha)
        m_over_q = _log_mixed(gap, alpha, 1 - alpha)
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


def _log_mixed(gap: Float64Array, weight: float, rest: float) -> Float64Array:
    """log(rest + weight e^gap), of weights that add up to 1; right to its own last digits.

    log1p(weight expm1(gap)) near 0; where that comes near -1 the sum of two positive numbers; where
    e^gap could overflow log(1 + weight e^gap), from which e^-40 is missing.
    """
    far = gap > 40.0
    added = weight * np.expm1(np.where(far, 0.0, gap))
    low = added < -0.5
    near = np.log1p(np.where(low, 0.0, added))
    sunk = np.log(rest + weight * np.exp(np.where(low, gap, 0.0)))
    risen = np.logaddexp(np.where(far, gap, 0.0) + np.log(weight), 0.0)
    return np.where(far, risen, np.where(low, sunk, near))


def _pair(first: npt.ArrayLike, second: npt.ArrayLike) -> tuple[Float64Array, Float64Array]:
    one, two = np.asarray(first, dtype=np.float64), np.asarray(second, dtype=np.float64)
    if one.shape != two.shape:
        raise ValueError(f"the shapes differ: {list(one.shape)} and {list(two.shape)}")
    return one, two


def _total(terms: npt.NDArray[Any]) -> Float64Array:
    return np.asarray(terms.sum(axis=-1), dtype=np.float64)
