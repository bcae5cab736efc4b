"""Candidate log-probs: ids per row or for all rows, and -1 for "not asked"."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from scoring_service.engine.loading.loader import LoadedModel
from scoring_service.types import Processing
from tests.engine import plain
from tests.engine.scoring import completion, score_one

PROMPT = [11, 22, 33]
IDS = [44, 55, 66, 77, 88, 99]
WITHIN = 1e-4


@pytest.fixture(scope="module")
def expected(plain_tiny: Any) -> plain.F64:
    """Log-probs of all rows and the next_token row, [T + 1, V]."""
    return plain.log_softmax(plain.row_logits(plain_tiny, PROMPT, IDS))


def candidates(rows: int, width: int = 5) -> np.ndarray:
    ids = np.random.default_rng(rows).integers(0, 2048, size=(rows, width)).astype(np.int32)
    ids[0, 0], ids[0, 1], ids[-1, 2] = 0, 2047, ids[-1, 3]
    return ids


def test_ids_for_each_row(tiny: LoadedModel, expected: plain.F64) -> None:
    ids = candidates(len(IDS))
    found = score_one(tiny, PROMPT, completion(IDS, candidates=ids)).candidate_logprobs
    assert found.dtype == np.float32
    np.testing.assert_allclose(
        found, np.take_along_axis(expected[:-1], ids.astype(np.int64), axis=1), atol=WITHIN
    )


def test_one_row_of_ids_is_for_all_rows(tiny: LoadedModel, expected: plain.F64) -> None:
    ids = candidates(1)
    task = completion(IDS, candidates=ids)
    found = score_one(tiny, PROMPT, task, next_token=True).candidate_logprobs
    np.testing.assert_allclose(found, expected[:, ids[0]], atol=WITHIN)


def test_rows_of_ids_follow_the_wanted_rows(tiny: LoadedModel, expected: plain.F64) -> None:
    """With spans and next_token, row n of the ids belongs to the n-th wanted row."""
    rows = [1, 4, 5, 6]
    ids = candidates(len(rows))
    task = completion(IDS, spans=((1, 1), (4, 2)), candidates=ids)
    found = score_one(tiny, PROMPT, task, next_token=True)
    assert found.row_indices == rows
    np.testing.assert_allclose(
        found.candidate_logprobs,
        np.take_along_axis(expected[rows], ids.astype(np.int64), axis=1),
        atol=WITHIN,
    )


@pytest.mark.parametrize("rows", [1, len(IDS)])
def test_minus_one_is_answered_with_nan(tiny: LoadedModel, rows: int) -> None:
    ids = candidates(rows)
    ids[:, 1] = -1
    found = score_one(tiny, PROMPT, completion(IDS, candidates=ids)).candidate_logprobs
    asked = np.broadcast_to(ids >= 0, found.shape)
    assert np.isfinite(found[asked]).all()
    assert np.isnan(found[~asked]).all()


def test_candidates_are_never_truncated(tiny: LoadedModel, expected: plain.F64) -> None:
    """They are log-probs at the temperature, whatever truncation does to the processed ones."""
    ids = candidates(1)
    task = completion(IDS, candidates=ids)
    processing = Processing(temperature=0.5, top_k=1)
    found = score_one(tiny, PROMPT, task, processing=processing).candidate_logprobs
    sharpened = plain.log_softmax(expected[:-1] / 0.5)
    np.testing.assert_allclose(found, sharpened[:, ids[0]], atol=2 * WITHIN)


def test_a_candidate_has_the_bits_of_the_realised_token(tiny: LoadedModel) -> None:
    ids = np.array(IDS, dtype=np.int32)[:, None]
    found = score_one(tiny, PROMPT, completion(IDS, candidates=ids))
    assert found.candidate_logprobs[:, 0].tobytes() == found.logprobs.tobytes()


def test_ids_for_each_row_beyond_the_first_tile(tiny: LoadedModel) -> None:
    """300 rows take two tiles of logits: the ids of the second are not those of the first."""
    ids = np.random.default_rng(6).integers(0, 2048, size=300).astype(np.int32)
    task = completion(ids.tolist(), candidates=ids[:, None])
    found = score_one(tiny, PROMPT, task)
    assert found.candidate_logprobs[:, 0].tobytes() == found.logprobs.tobytes()
