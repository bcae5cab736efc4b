"""Distillation losses: differentiable in the student's logits, masked, with reductions.

The teacher comes as TeacherRows, from one ``topk_logprobs`` request. P is the teacher, Q the
student. Divergences are taken over the events that the teacher's answer tells apart: its top-K
tokens, the candidates beside them, and one for everything else (``tail="bucket"``). That makes
them at most the divergence over the whole vocabulary, and equal to it at K = V. ``divergences`` is
the same in numpy. Legend: N rows, V vocabulary, K top-K.

The mass of everything else is summed on both sides, never 1 - sum: the student's over what is
outside, the teacher's by the server, less what candidates took out of it. So equal log-masses
give exactly 0 on a list (those of two programs are equal to float32's rounding, about 1e-6), and 0
to rounding with candidates: what is left of the teacher's tail has the error of the server's sum,
about 1e-6 of the tail in float32 and at most 1e-5. KL of equal or nearly equal distributions may be
below 0 by so much; Jensen-Shannon has the square of it, over the share of the tail that is left: at
most 2e-7.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any, TypedDict, Unpack

import torch
from torch import Tensor

from scoring_client.divergences import check_alpha
from scoring_client.training.buckets import Buckets, buckets, union_with_floor
from scoring_client.training.cross_entropy import soft_cross_entropy
from scoring_client.training.given import Given
from scoring_client.training.numpy_buckets import Tail
from scoring_client.training.reductions import Reduction, kept_rows, matrix_shape, reduced
from scoring_client.training.teacher import TeacherRows, teacher_rows
from scoring_client.training.truncation import RowValue
from scoring_client.values.options import check_names

__all__ = [
    "LossOptions",
    "TeacherRows",
    "forward_kl",
    "generalized_js",
    "reverse_kl",
    "soft_cross_entropy",
    "teacher_rows",
]


class LossOptions(TypedDict, total=False):
    """Of forward_kl, reverse_kl and generalized_js."""

    temperature: RowValue
    """Divides the student's logits; a number or [N]. Default: 1."""
    tail: Tail
    """What becomes of the mass outside; see Tail. Default: ``bucket``."""
    mask: Given | None
    """bool or 0 and 1, [N]; what is masked may hold anything. Default: every row counts."""
    reduction: Reduction
    """See Reduction. Default: ``mean``."""
    chunk_rows: int | None
    """Rows computed at a time, again in the backward pass. Default: all at once."""


def forward_kl(logits: Tensor, teacher: TeacherRows, **options: Unpack[LossOptions]) -> Tensor:
    """Return KL(P || Q) = sum p (log p - log q).

    In [0, ∞], 0 when P and Q are equal and only then, not symmetric; exactly so of log-masses on a
    list, to rounding with candidates (see above: -1e-5 times the tail's mass at the least). With
    ``tail="drop"`` the lists are no distributions, and the number may be negative.

    Args:
        logits: The student's, [N, V].
        teacher: What the teacher says of the same rows, at the same temperature.
        options: Those of LossOptions: ``temperature``, ``tail``, ``mask``, ``reduction``,
            ``chunk_rows``.

    Raises:
        ValueError: other numbers of rows, ids outside the vocabulary (``token_id_limit`` keeps them
            away), no ``log_tail_masses`` for the bucket, or temperature <= 0.
    """
    check_names(options, LossOptions, "forward_kl")
    return _divergence(_forward_kl, logits, teacher, **options)


def reverse_kl(logits: Tensor, teacher: TeacherRows, **options: Unpack[LossOptions]) -> Tensor:
    """Return KL(Q || P) = sum q (log q - log p), on the list and the candidates.

    In [0, ∞], 0 when P and Q are equal and only then, as exactly as ``forward_kl`` is; not
    symmetric; infinite where the student puts mass on what the teacher holds impossible. The events
    should hold what the student finds likely: give
    its own top-C as candidates. For candidates alone, without a teacher's list, give them as
    ``token_ids`` and choose ``tail="renormalize"``, or ``"drop"`` for the bare sum.

    Arguments and errors as of ``forward_kl``.
    """
    check_names(options, LossOptions, "reverse_kl")
    return _divergence(_reverse_kl, logits, teacher, **options)


def generalized_js(
    logits: Tensor,
    teacher: TeacherRows,
    alpha: float = 0.5,
    *,
    normalize: bool = False,
    floor: float | None = None,
    **options: Unpack[LossOptions],
) -> Tensor:
    """Return α KL(P || M) + (1 - α) KL(Q || M), M = α P + (1 - α) Q: generalised Jensen-Shannon.

    In [0, H(α)] with H the binary entropy, so at most log 2; 0 when P and Q are equal and only
    then: of log-masses exactly on a list, to rounding with candidates (2e-7 at most). It is the
    same when P and Q and α and 1 - α change places: symmetric at α = 1/2. As α → 0 it vanishes like
    α KL(P || Q), as α → 1 like (1 - α) KL(Q || P).

    Args:
        logits: The student's, [N, V].
        teacher: What the teacher says of the same rows: its top-K, and the student's top-C as
            candidates, which makes the events the union of the two.
        alpha: Weight of the teacher, in (0, 1); with ``normalize`` in [0, 1].
        normalize: Divide by α (1 - α): the limits become forward KL (α = 0) and reverse KL (α = 1),
            and α = 1/2 four times the divergence.
        floor: The convention of trainers that have only two top-K lists: a token that one list
            lacks counts with this log-prob there (such as -20), and there is no tail. Needs the
            student's list as ``candidate_ids``; the teacher's numbers for them are not used. For
            comparison with such trainers: it is neither a divergence of distributions nor bounded
            by H(α).
        options: As of ``forward_kl``.

    Raises:
        ValueError: alpha out of range, ``floor`` without candidates, and as of ``forward_kl``.
    """
    check_alpha(alpha, normalize)
    if alpha in (0, 1):
        function: Callable[[Buckets], Tensor] = _forward_kl if alpha == 0 else _reverse_kl
    else:
        function = partial(_generalized_js, alpha=alpha)
    scale = 1 / (alpha * (1 - alpha)) if normalize and 0 < alpha < 1 else 1.0
    check_names(options, LossOptions, "generalized_js")
    return _divergence(function, logits, teacher, floor=floor, **options) * scale


def _forward_kl(both: Buckets) -> Tensor:
    p, q = both
    there, impossible = p > -math.inf, q == -math.inf
    # Masked before the product: 0 · inf backwards would be NaN, and forwards too where p is so
    # small that its mass is 0.
    safe_p, safe_q = p.masked_fill(~there, 0.0), q.masked_fill(~there | impossible, 0.0)
    terms = p.exp() * (safe_p - safe_q)
    return terms.masked_fill(there & impossible, math.inf).sum(dim=1)


def _reverse_kl(both: Buckets) -> Tensor:
    return _forward_kl(Buckets(both.student, both.teacher))


def _generalized_js(both: Buckets, *, alpha: float) -> Tensor:
    """By the gaps between log p and log q, so that equal ones give exactly 0."""
    p, q = both
    p_mass, q_mass = p.exp(), q.exp()
    # Beside an event that one side does not have, e^-200 of the other's mass is nothing.
    gone = (p == -math.inf) & (q == -math.inf)
    p, q = p.masked_fill(gone, 0.0), q.masked_fill(gone, 0.0)
    p = torch.where(p == -math.inf, q.detach() - 200.0, p)
    q = torch.where(q == -math.inf, p.detach() - 200.0, q)
    m_over_p = _log_mixed(q - p, 1.0 - alpha, alpha)
    m_over_q = _log_mixed(p - q, alpha, 1.0 - alpha)
    return -(alpha * p_mass * m_over_p + (1.0 - alpha) * q_mass * m_over_q).sum(dim=1)


def _log_mixed(gap: Tensor, weight: float, rest: float) -> Tensor:
    """log(rest + weight e^gap), of weights that add up to 1; right to its own last digits.

    Both are given: 1 - alpha in float32 would lose an alpha that is small. Near 0 it is
    log1p(weight expm1(gap)), and relative to alpha it has to be exact there; where that comes near
    -1, and would lose the rest, the sum of two positive numbers; where e^gap could overflow,
    log(1 + weight e^gap), from which e^-40 is missing.
    """
    far = gap > 40.0
    added = weight * torch.expm1(gap.masked_fill(far, 0.0))
    low = added < -0.5
    near = torch.log1p(added.masked_fill(low, 0.0))
    sunk = torch.log(rest + weight * torch.exp(gap.masked_fill(~low, 0.0)))
    risen = torch.logaddexp(gap.masked_fill(~far, 0.0) + math.log(weight), torch.zeros_like(gap))
    return torch.where(far, risen, torch.where(low, sunk, near))


def _divergence(
    function: Callable[[Buckets], Tensor],
    logits: Tensor,
    teacher: TeacherRows,
    *,
    floor: float | None = None,
    temperature: RowValue = 1.0,
    tail: Tail = "bucket",
    mask: Given | None = None,
    reduction: Reduction = "mean",
    chunk_rows: int | None = None,
) -> Tensor:
    given_teacher: Any = teacher
    if not isinstance(given_teacher, TeacherRows):
        raise ValueError(
            "the teacher must be TeacherRows, such as teacher_rows(results.completions()), got "
            f"{type(given_teacher).__name__}"
        )
    rows, vocab = matrix_shape(logits)
    if len(teacher.token_ids) != rows:
        raise ValueError(f"the teacher has {len(teacher.token_ids)} rows, the logits {rows}")
    if tail not in ("bucket", "renormalize", "drop"):
        raise ValueError(f'tail must be "bucket", "renormalize" or "drop", got {tail!r}')
    if floor is not None and teacher.candidate_ids is None:
        raise ValueError("floor needs the student's list as candidate_ids")
    if floor is None and tail == "bucket" and teacher.log_tail_masses is None:
        raise ValueError('tail="bucket" needs log_tail_masses; choose another tail without them')
    kept = kept_rows(mask, logits)
    for ids in (teacher.token_ids, teacher.candidate_ids):
        asked = ids if ids is None or kept is None else ids[kept]
        if asked is not None and asked.numel() and int(asked.max()) >= vocab:
            raise ValueError(
                f"the teacher lists id {int(asked.max())}, the student has {vocab}: ask with "
                f"token_id_limit={vocab}"
            )
    others = {
        "token_ids": teacher.token_ids,
        "logprobs": teacher.logprobs,
        "log_tail_masses": teacher.log_tail_masses,
        "candidate_ids": teacher.candidate_ids,
        "candidate_logprobs": teacher.candidate_logprobs,
    }
    events = (
        partial(buckets, tail=tail) if floor is None else partial(union_with_floor, floor=floor)
    )

    def by_rows(x_N_V: Tensor, **given: Tensor) -> Tensor:
        return function(events(x_N_V, **given))

    return reduced(by_rows, logits, others, temperature, kept, reduction, chunk_rows)
