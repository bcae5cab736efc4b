"""Temperature and truncation, composed with a real model, against whole sorts in float64."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from scoring_service.engine.loading.loader import LoadedModel
from scoring_service.types import Processing
from tests.engine import plain
from tests.engine.scoring import EVERYTHING, Scored, completion, group, score, score_one
from tests.kernels import oracle

WITHIN = 1e-4
RNG = np.random.default_rng(3)
PROMPT = RNG.integers(0, 2048, size=12).tolist()

SETTINGS = [
    Processing(temperature=0.5),
    Processing(temperature=1.7),
    Processing(top_k=1),
    Processing(top_k=50),
    Processing(top_p=0.1),
    Processing(top_p=0.9),
    Processing(min_p=0.05),
    Processing(temperature=0.7, top_k=100, top_p=0.95, min_p=0.02),
    Processing(temperature=0.7, top_k=10, top_p=0.8, keep_realised=True),
]


@pytest.fixture(scope="module")
def ids(plain_tiny: Any) -> list[int]:
    """Likely tokens and unlikely ones in turn, so that both sides of every edge are met."""
    ids = list(PROMPT)
    for n in range(40):
        likely = np.argsort(-plain.logits(plain_tiny, ids)[-1])
        ids.append(int(likely[[0, 3, 30, 1500][n % 4]]))
    return ids[len(PROMPT) :]


@pytest.fixture(scope="module")
def logits(plain_tiny: Any, ids: list[int]) -> oracle.F32:
    return plain.row_logits(plain_tiny, PROMPT, ids)[:-1].astype(np.float32)


def is_knife_edge(x_V: oracle.F32, setting: Processing) -> bool:
    """Whether an error of 1e-4 in a logit could move a token across an edge of the support."""
    below_max = x_V.astype(np.float64) - x_V.max()
    ordered = np.sort(below_max)[::-1]
    at_k = 0 < setting.top_k < len(x_V) and ordered[setting.top_k - 1] - ordered[setting.top_k] < (
        WITHIN
    )
    at_p = oracle.nucleus_edge(x_V, setting.top_k, setting.top_p, 1e-4).any()
    at_min = setting.min_p > 0 and np.abs(below_max - math.log(setting.min_p)).min() < WITHIN
    return bool(at_k or at_p or at_min)


@pytest.mark.parametrize("setting", SETTINGS, ids=lambda s: f"{s.temperature}-{s.top_k}-{s.top_p}")
def test_against_the_definitions(
    tiny: LoadedModel, ids: list[int], logits: oracle.F32, setting: Processing
) -> None:
    found = score_one(tiny, PROMPT, completion(ids), EVERYTHING, setting)
    inside = outside = 0
    for row, token_id in enumerate(ids):
        x_V = oracle.scaled(logits[row], setting.temperature)
        expected = oracle.logprobs(x_V)
        assert found.logprobs[row] == pytest.approx(expected[token_id], abs=WITHIN)
        assert found.entropies[row] == pytest.approx(oracle.entropy(x_V), abs=WITHIN)
        assert found.logsumexps[row] == pytest.approx(oracle.logsumexp(x_V), abs=WITHIN)
        if is_knife_edge(x_V, setting):
            continue
        keep_V = oracle.support(x_V, setting.top_k, setting.top_p, setting.min_p)
        if setting.keep_realised:
            keep_V[token_id] = True
        assert found.support_sizes[row] == keep_V.sum()
        kept = oracle.log_kept_mass(x_V, keep_V)
        assert found.log_kept_masses[row] == pytest.approx(kept, abs=WITHIN)
        processed = oracle.processed_logprobs(x_V, keep_V)[token_id]
        assert found.processed_logprobs[row] == pytest.approx(processed, abs=WITHIN)
        inside += keep_V[token_id]
        outside += not keep_V[token_id]
    assert inside >= 8
    truncates = setting.top_k or setting.top_p < 1 or setting.min_p
    assert (outside >= 8) == bool(truncates and not setting.keep_realised)


def test_processed_is_logprob_less_kept_mass(tiny: LoadedModel, ids: list[int]) -> None:
    setting = Processing(temperature=0.9, top_k=64, top_p=0.9)
    found = score_one(tiny, PROMPT, completion(ids), EVERYTHING, setting)
    kept = np.isfinite(found.processed_logprobs)
    difference = found.logprobs - found.log_kept_masses
    np.testing.assert_allclose(found.processed_logprobs[kept], difference[kept], atol=1e-5)
    assert (found.processed_logprobs[~kept] == -math.inf).all()
    assert 0 < kept.sum() < len(ids)


def test_keep_realised_leaves_no_token_outside(tiny: LoadedModel, ids: list[int]) -> None:
    """And changes nothing for a row whose token was inside already."""
    settings = [Processing(top_k=5), Processing(top_k=5, keep_realised=True)]
    bare, guarded = (score_one(tiny, PROMPT, completion(ids), EVERYTHING, s) for s in settings)
    inside = np.isfinite(bare.processed_logprobs)
    assert np.isfinite(guarded.processed_logprobs).all()
    assert (guarded.support_sizes == np.where(inside, 5, 6)).all()
    assert (guarded.processed_logprobs[inside] == bare.processed_logprobs[inside]).all()


def test_keep_realised_leaves_the_next_token_row_alone(tiny: LoadedModel) -> None:
    """That row has no realised token: its support is the truncation's own."""
    setting = Processing(top_k=5, keep_realised=True)
    found = score_one(tiny, PROMPT, completion([9]), EVERYTHING, setting, next_token=True)
    assert found.support_sizes[-1] == 5


def test_truncation_leaves_what_is_not_processed_alone(tiny: LoadedModel, ids: list[int]) -> None:
    def scored(setting: Processing) -> Scored:
        return score_one(tiny, PROMPT, completion(ids), EVERYTHING, setting)

    bare, truncated = scored(Processing()), scored(Processing(top_k=3, top_p=0.5, min_p=0.1))
    for name in ("logprobs", "entropies", "logsumexps", "ranks", "top_logprobs"):
        assert getattr(bare, name).tobytes() == getattr(truncated, name).tobytes()


def test_groups_of_one_call_have_their_own_processing(tiny: LoadedModel, ids: list[int]) -> None:
    settings = [Processing(), Processing(temperature=0.5), Processing(top_k=2)]
    tasks = [group(PROMPT, [completion(ids)], s, index=i) for i, s in enumerate(settings)]
    together = score(tiny, tasks, EVERYTHING)
    for index, setting in enumerate(settings):
        alone = score_one(tiny, PROMPT, completion(ids), EVERYTHING, setting)
        assert together[index, 0].logprobs.tobytes() == alone.logprobs.tobytes()
        assert together[index, 0].processed_logprobs.tobytes() == alone.processed_logprobs.tobytes()
        assert {s.processing_index for s in together[index, 0].slices} == {index}


@pytest.mark.parametrize("limit", [1, 40, 2047, 2048])
def test_only_ids_below_the_limit_are_ranked(
    tiny: LoadedModel, ids: list[int], logits: oracle.F32, limit: int
) -> None:
    """The others count as tail; log-probs stay those of the whole vocabulary."""
    k = min(limit, 7)
    wants = type(EVERYTHING)(rank=True, top_k=k, token_id_limit=limit)
    found = score_one(tiny, PROMPT, completion(ids), wants)
    for row, token_id in enumerate(ids):
        expected = oracle.logprobs(logits[row])
        listed = found.top_token_ids[row]
        assert len(set(listed.tolist())) == k
        assert (listed < limit).all()
        best = np.sort(expected[:limit])[::-1][:k]
        np.testing.assert_allclose(found.top_logprobs[row], best, atol=WITHIN)
        tail = oracle.log_tail_mass(logits[row], listed.astype(np.int64))
        assert found.log_tail_masses[row] == pytest.approx(tail, abs=2 * WITHIN)
        if token_id >= limit:
            assert found.ranks[row] == 0
        else:
            own = expected[token_id]
            assert found.ranks[row] > (expected[:limit] > own + WITHIN).sum()
            assert found.ranks[row] <= (expected[:limit] >= own - WITHIN).sum()


def test_k_up_to_the_vocabulary(tiny: LoadedModel, ids: list[int], logits: oracle.F32) -> None:
    found = score_one(tiny, PROMPT, completion(ids[:3]), type(EVERYTHING)(top_k=2048))
    assert (np.sort(found.top_token_ids, axis=1) == np.arange(2048)).all()
    assert (found.log_tail_masses == -math.inf).all()
    for row in range(3):
        expected = oracle.logprobs(logits[row])[found.top_token_ids[row]]
        np.testing.assert_allclose(found.top_logprobs[row], expected, atol=WITHIN)
