"""Which rows are answered: spans, the next_token row, and the bits they share with the rest."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scoring_service.engine.loading.loader import LoadedModel
from scoring_service.types import Processing
from tests.engine import plain
from tests.engine.poison import poison_token
from tests.engine.scoring import (
    EVERYTHING,
    Scored,
    Spans,
    assert_same_bits,
    completion,
    group,
    score,
    score_one,
)

RNG = np.random.default_rng(5)
PROMPT = RNG.integers(0, 2048, size=9).tolist()
IDS = RNG.integers(0, 2048, size=40).tolist()
PROCESSING = Processing(temperature=0.8, top_k=40, top_p=0.9, min_p=0.01)


@st.composite
def spans(draw: st.DrawFn, length: int = len(IDS)) -> Spans:
    """Ascending spans that do not overlap; some touch."""
    marks = draw(st.sets(st.integers(0, length), min_size=2, max_size=12))
    edges = sorted(marks)
    pairs = list(pairwise(edges))
    kept = draw(st.sets(st.sampled_from(pairs), min_size=1))
    return tuple((start, stop - start) for start, stop in sorted(kept))


def rows_of(wanted: Spans) -> list[int]:
    return [row for start, length in wanted for row in range(start, start + length)]


@pytest.fixture(scope="module", params=["tiny_packed", "tiny_plain", "tiny_bfloat16"])
def loaded(request: pytest.FixtureRequest) -> LoadedModel:
    return request.getfixturevalue(request.param)


@pytest.fixture(scope="module")
def whole(loaded: LoadedModel) -> Scored:
    assert loaded.info.deterministic
    return score_one(loaded, PROMPT, completion(IDS), EVERYTHING, PROCESSING, next_token=True)


@given(wanted=spans(), next_token=st.booleans())
@settings(max_examples=30)
def test_a_subset_has_the_bits_of_the_full_answer(
    loaded: LoadedModel, whole: Scored, wanted: Spans, next_token: bool
) -> None:
    task = completion(IDS, wanted)
    found = score_one(loaded, PROMPT, task, EVERYTHING, PROCESSING, next_token)
    rows = rows_of(wanted) + [len(IDS)] * next_token
    assert found.row_indices == rows
    assert_same_bits(found, whole, rows)


def test_asking_for_less_changes_no_bits(loaded: LoadedModel, whole: Scored) -> None:
    """Log-probs alone are those that come with everything else."""
    found = score_one(loaded, PROMPT, completion(IDS), processing=PROCESSING)
    assert found.logprobs.tobytes() == whole.logprobs.tobytes()
    assert not found.has("entropies")
    assert not found.has("top_token_ids")


def test_the_next_token_row_alone(loaded: LoadedModel, whole: Scored) -> None:
    """No completion row at all: only what follows the last token."""
    found = score_one(
        loaded, PROMPT, completion(IDS, spans=()), EVERYTHING, PROCESSING, next_token=True
    )
    assert found.row_indices == [len(IDS)]
    assert found.logprobs.shape == found.ranks.shape == found.processed_logprobs.shape == (0,)
    assert found.top_token_ids.tobytes() == whole.top_token_ids[-1:].tobytes()


def test_the_next_token_row_is_row_zero_of_what_follows(tiny: LoadedModel) -> None:
    """One token shifted would show here: the same distribution, asked for in two ways."""
    asked = score_one(tiny, PROMPT, completion(IDS), EVERYTHING, next_token=True)
    follows = score_one(tiny, PROMPT + IDS, completion([7]), EVERYTHING)
    np.testing.assert_allclose(asked.top_logprobs[-1], follows.top_logprobs[0], atol=1e-5)
    assert asked.entropies[-1] == pytest.approx(follows.entropies[0], abs=1e-5)


def test_a_prompt_of_one_token_scores_a_whole_text(tiny: LoadedModel, plain_tiny: object) -> None:
    text = PROMPT + IDS
    found = score_one(tiny, text[:1], completion(text[1:]))
    expected = plain.log_softmax(plain.logits(plain_tiny, text))
    realised = expected[np.arange(len(text) - 1), text[1:]]
    np.testing.assert_allclose(found.logprobs, realised, atol=1e-4)


def test_a_fault_ends_its_item_alone(tiny: LoadedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """A row that is no distribution fails its completion; the others of the call are answered."""
    poison_token(tiny, 13, monkeypatch)
    tasks = [
        group(PROMPT, [completion([5, 13, 6], index=0), completion([5, 6], index=1)], index=0),
        group(PROMPT, [completion([7], index=0)], index=1),
    ]
    answer = score(tiny, tasks)
    assert set(answer.items) == {(0, 1), (1, 0)}
    (failure,) = answer.failures
    assert (failure.index, failure.part) == (0, 0)
    assert failure.fault.reason == "NON_FINITE_LOGITS"
