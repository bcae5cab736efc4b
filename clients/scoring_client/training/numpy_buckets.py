"""Teacher and student over the same few events, in numpy: the twin of ``buckets``.

Legend: N rows, V vocabulary, K top-K, C candidates, M = K + C events. Everything is float64.
"""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from scoring_client.values.arrays import Float64Array

Tail = Literal["bucket", "renormalize", "drop"]
"""What becomes of the mass outside the list: one more event, which makes two distributions of it;
both lists scaled to 1; nothing, which leaves two lists that do not add up to 1."""

TAIL_RESOLUTION = 1e-4
"""Share of a tail that has to be left when candidates are taken out of it. A server's tail is right
to 1e-5 of itself (about 1e-6 in float32, as measured), and what is left of it to as much of the
whole: at a hundredth of the tail to 1e-3 of its own mass, at this share to a tenth."""


def top_k_buckets(
    student_logprobs: npt.ArrayLike,
    token_ids: npt.ArrayLike,
    teacher_logprobs: npt.ArrayLike,
    log_tail_masses: npt.ArrayLike | None = None,
    candidate_ids: npt.ArrayLike | None = None,
    candidate_logprobs: npt.ArrayLike | None = None,
    *,
    tail: Tail = "bucket",
) -> tuple[Float64Array, Float64Array]:
    """Return teacher and student over a top-K list, the candidates outside it, and the tail.

    The tail holds everything else: the teacher's is the server's tail mass less what the candidates
    took out of it, the student's is summed. A row in which less than 1e-4 of the teacher's tail is
    left, where the difference would be rounding (see TAIL_RESOLUTION), does without its candidates:
    coarser, and as exact as the server's tail.

    Args:
        student_logprobs: The student's log-probs over the vocabulary, [N, V].
        token_ids: The teacher's list, [N, K]; an id stands once in a row; negative = none.
        teacher_logprobs: [N, K]; not read where there is no id.
        log_tail_masses: [N]; needed for ``bucket``.
        candidate_ids: Further ids, such as the student's own top-C, [N, C]; negative = none.
        candidate_logprobs: The teacher's log-probs there, [N, C].
        tail: What becomes of the rest; see Tail.

    Returns:
        Log-masses of teacher and student, float64 [N, K + C + 1], without a tail [N, K + C]; -inf
        in both for what is not there.

    Raises:
        ValueError: an id outside the vocabulary, candidates without log-probs or the other way
            round, no ``log_tail_masses`` for the bucket, or another ``tail``.
    """
    if tail not in ("bucket", "renormalize", "drop"):
        raise ValueError(f'tail must be "bucket", "renormalize" or "drop", got {tail!r}')
    if tail == "bucket" and log_tail_masses is None:
        raise ValueError('tail="bucket" needs log_tail_masses; choose another tail without them')
    if (candidate_ids is None) != (candidate_logprobs is None):
        raise ValueError("candidate_ids and candidate_logprobs go together")
    q_N_V = np.asarray(student_logprobs, dtype=np.float64)
    tail_N = np.asarray(log_tail_masses, dtype=np.float64) if tail == "bucket" else None
    ids_N_M = np.asarray(token_ids)
    p_N_M = np.where(ids_N_M >= 0, np.asarray(teacher_logprobs, dtype=np.float64), -np.inf)
    if candidate_ids is not None:
        more_N_C = np.asarray(candidate_ids)
        logprobs_N_C = np.asarray(candidate_logprobs, dtype=np.float64)
        ids_N_M, p_N_M, tail_N = _joined(ids_N_M, p_N_M, more_N_C, logprobs_N_C, tail_N)
    q_N_M, listed_N_V = _at(q_N_V, ids_N_M)
    if tail == "renormalize":
        return _scaled_to_one(p_N_M), _scaled_to_one(q_N_M)
    if tail_N is None:
        return p_N_M, q_N_M
    with np.errstate(divide="ignore"):
        q_tail_N = np.log(np.where(listed_N_V, 0.0, np.exp(q_N_V)).sum(axis=1))
    return (
        np.concatenate([p_N_M, tail_N[:, None]], axis=1),
        np.concatenate([q_N_M, q_tail_N[:, None]], axis=1),
    )


def _joined(
    ids_N_K: npt.NDArray[Any],
    p_N_K: Float64Array,
    more_N_C: npt.NDArray[Any],
    logprobs_N_C: Float64Array,
    tail_N: Float64Array | None,
) -> tuple[npt.NDArray[Any], Float64Array, Float64Array | None]:
    """The list with the candidates outside it, and the tail less what those took out of it."""
    used_N_C = _first_seen(ids_N_K, more_N_C)
    taken_N_C = np.where(used_N_C, logprobs_N_C, -np.inf)
    if tail_N is not None:
        tail_N, resolved_N = _less(tail_N, taken_N_C)
        used_N_C &= resolved_N[:, None]
    ids_N_M = np.concatenate([ids_N_K, np.where(used_N_C, more_N_C, -1)], axis=1)
    p_N_M = np.concatenate([p_N_K, np.where(used_N_C, taken_N_C, -np.inf)], axis=1)
    return ids_N_M, p_N_M, tail_N


def union_with_floor(
    student_logprobs: npt.ArrayLike,
    token_ids: npt.ArrayLike,
    teacher_logprobs: npt.ArrayLike,
    candidate_ids: npt.ArrayLike,
    floor: float,
) -> tuple[Float64Array, Float64Array]:
    """Return teacher and student over the union of their lists, at a floor where one has a gap.

    The convention of trainers that have two bare lists: what ``losses.generalized_js`` takes with
    ``floor``. The two do not add up to 1.

    Args:
        student_logprobs: The student's log-probs over the vocabulary, [N, V].
        token_ids: The teacher's list, [N, K]; an id stands once in a row; negative = none.
        teacher_logprobs: [N, K].
        candidate_ids: The student's list, [N, C]; negative = none.
        floor: Log-prob of a token that a list lacks, such as -20.

    Returns:
        Log-masses of teacher and student, float64 [N, K + C]; -inf in both for what is not there.

    Raises:
        ValueError: an id outside the vocabulary.
    """
    q_N_V = np.asarray(student_logprobs, dtype=np.float64)
    listed_N_K, own_N_C = np.asarray(token_ids), np.asarray(candidate_ids)
    p_N_K = np.asarray(teacher_logprobs, dtype=np.float64)
    p_N_M = np.concatenate([p_N_K, np.full(own_N_C.shape, floor)], axis=1)
    new_N_C = np.where(_first_seen(listed_N_K, own_N_C), own_N_C, -1)
    ids_N_M = np.concatenate([listed_N_K, new_N_C], axis=1)
    q_N_M, _ = _at(q_N_V, ids_N_M)
    _, students_N_V = _at(q_N_V, own_N_C)
    has_it_N_M = np.take_along_axis(students_N_V, np.maximum(ids_N_M, 0), axis=1)
    there_N_M = ids_N_M >= 0
    return (
        np.where(there_N_M, p_N_M, -np.inf),
        np.where(there_N_M, np.where(has_it_N_M, q_N_M, floor), -np.inf),
    )


def _at(
    q_N_V: Float64Array, ids_N_M: npt.NDArray[Any]
) -> tuple[Float64Array, npt.NDArray[np.bool_]]:
    """The log-probs at ids, -inf where there is none, and which of the vocabulary are among them.

    Raises:
        ValueError: an id outside the vocabulary.
    """
    rows, vocab = q_N_V.shape
    if ids_N_M.size and ids_N_M.max() >= vocab:
        raise ValueError(f"an id is {ids_N_M.max()}, the student has {vocab}")
    there_N_M, row_N_1 = ids_N_M >= 0, np.arange(rows)[:, None]
    listed_N_V = np.zeros(q_N_V.shape, dtype=bool)
    places_N_M = np.maximum(ids_N_M, 0)  # any negative id is none, however small
    np.logical_or.at(listed_N_V, (row_N_1, places_N_M), there_N_M)
    return np.where(there_N_M, q_N_V[row_N_1, places_N_M], -np.inf), listed_N_V


def _less(
    log_tail_N: Float64Array, taken_N_C: Float64Array
) -> tuple[Float64Array, npt.NDArray[np.bool_]]:
    """log(tail - sum of what was taken), and whether the difference still says something."""
    with np.errstate(invalid="ignore", divide="ignore"):
        share_N = np.exp(taken_N_C - log_tail_N[:, None]).sum(axis=1)
        resolved_N = share_N < 1 - TAIL_RESOLUTION
        return np.where(resolved_N, log_tail_N + np.log1p(-share_N), log_tail_N), resolved_N


def _scaled_to_one(log_N_M: Float64Array) -> Float64Array:
    total_N_1: Float64Array = np.logaddexp.reduce(log_N_M, axis=1, keepdims=True)
    return log_N_M - total_N_1


def _first_seen(ids_N_K: npt.NDArray[Any], more_N_C: npt.NDArray[Any]) -> npt.NDArray[np.bool_]:
    """Which of further ids [N, C] are asked, in no list before them, and not repeated."""
    new_N_C = more_N_C >= 0
    for column in range(more_N_C.shape[1]):
        before = np.concatenate([ids_N_K, more_N_C[:, :column]], axis=1)
        new_N_C[:, column] &= ~(before == more_N_C[:, column : column + 1]).any(axis=1)
    return new_N_C
