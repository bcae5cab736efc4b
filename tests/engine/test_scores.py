"""Every number of 50 random prompt groups against plain transformers in float32 and float64."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

from scoring_service.engine.loading.loader import LoadedModel
from tests.engine import plain
from tests.engine.random_groups import random_groups
from tests.engine.sampling import sample
from tests.engine.scoring import EVERYTHING, Answer, Group, Scored, groups, score

WITHIN = 1e-4
K = EVERYTHING.top_k


@dataclass(frozen=True)
class Comparison:
    """What the engine answered, and what float64 makes of transformers' own logits."""

    pairs: list[Group]
    answer: Answer
    expected: dict[tuple[int, int], plain.Rows]
    within: dict[tuple[int, int], float]
    """The bound of each completion's log-probs, one for a group."""
    packed: bool
    vocab_size: int

    @property
    def items(self) -> list[tuple[Scored, plain.Rows, float]]:
        return [(self.answer[k], rows, self.within[k]) for k, rows in self.expected.items()]


def compare(loaded: LoadedModel, network: Any, pairs: list[Group], exact: Any = None) -> Comparison:
    """Compares with transformers.

    Args:
        loaded: the engine's model.
        network: the same in float32: the truth, unless `exact` is given.
        pairs: prompts and completions.
        exact: the same in float64. Some random texts blow up SmolLM2's activations: there the
            float32 forward of transformers is itself off by up to 1e-3, and no other order of
            addition can do better. So a group's bound is 2e-4, or three times the error of
            transformers' float32, with either attention, where that is more; a test below says
            how seldom 1e-4 is exceeded.
    """
    expected = {}
    within = {}
    for g, (prompt, completions) in enumerate(pairs):
        truths = [plain.row_logits(exact or network, prompt, ids) for ids in completions]
        bound = WITHIN if exact is None else 2 * WITHIN
        for attention in ("eager", "sdpa") if exact is not None else ():
            network.set_attn_implementation(attention)
            for ids, truth in zip(completions, truths, strict=True):
                logits = plain.row_logits(network, prompt, ids)
                error = np.abs(plain.log_softmax(logits) - plain.log_softmax(truth))
                listed = plain.rows(truth, ids, K, WITHIN).top_ids
                bound = max(
                    bound,
                    3 * np.take_along_axis(error, listed, axis=1).max(),
                    3 * error[np.arange(len(ids)), ids].max(),
                )
        for c, (ids, truth) in enumerate(zip(completions, truths, strict=True)):
            within[g, c] = bound
            expected[g, c] = plain.rows(truth, ids, K, bound)
    answer = score(loaded, groups(pairs), EVERYTHING, next_token=True)
    info = loaded.info
    return Comparison(pairs, answer, expected, within, info.packed, info.vocab_size)


@pytest.fixture(
    scope="module",
    params=["tiny_packed", "tiny_plain", pytest.param("smollm2", marks=pytest.mark.smollm2)],
)
def compared(request: pytest.FixtureRequest) -> Comparison:
    """50 groups; those of the larger model are shorter, because it takes its time on a CPU."""
    loaded = request.getfixturevalue(request.param)
    if request.param == "smollm2":
        network = request.getfixturevalue("plain_smollm2")
        exact = request.getfixturevalue("exact_smollm2")
        sizes = (16, 10, 3)
    else:
        network, exact = request.getfixturevalue("plain_tiny"), None
        sizes = (80, 60, 5)
    pairs = random_groups(np.random.default_rng(2), 50, loaded.info.vocab_size, *sizes)
    return compare(loaded, network, pairs, exact)


def test_nearly_every_number_is_within_the_narrow_bound(compared: Comparison) -> None:
    """And the wide one is rarely wider than twice that."""
    close = [
        np.abs(found.top_logprobs - expected.top_logprobs[:, :K]).ravel() <= WITHIN
        for found, expected, _ in compared.items
    ]
    assert np.concatenate(close).mean() >= 0.98
    assert np.mean([bound > 2 * WITHIN for bound in compared.within.values()]) <= 0.2


def test_the_groups_are_as_awkward_as_they_should_be(compared: Comparison) -> None:
    prompts = [len(prompt) for prompt, _ in compared.pairs]
    lengths = [len(ids) for _, completions in compared.pairs for ids in completions]
    assert len(prompts) == 50
    assert min(prompts) == min(lengths) == 1
    assert max(lengths) >= 3 * np.median(lengths)
    assert max(len(completions) for _, completions in compared.pairs) >= 3


def test_every_completion_is_answered_whole(compared: Comparison) -> None:
    assert compared.answer.failures == []
    assert set(compared.answer.items) == set(compared.expected)
    for key, expected in compared.expected.items():
        found = compared.answer[key]
        rows = len(expected.logprobs)
        assert found.row_indices == list(range(rows + 1))
        assert found.logprobs.dtype == np.float32
        assert found.logprobs.shape == (rows,)


def test_logprobs(compared: Comparison) -> None:
    for found, expected, within in compared.items:
        assert np.abs(found.logprobs - expected.logprobs).max() <= within


def test_top_k_ids_and_logprobs(compared: Comparison) -> None:
    """Ids are equal wherever the gaps before and after are above 1e-4; next_token row included."""
    clear = 0
    for found, expected, within in compared.items:
        gaps = -np.diff(expected.top_logprobs, axis=1)
        after = gaps > within
        before = np.concatenate([np.ones((len(gaps), 1), dtype=bool), after[:, :-1]], axis=1)
        told_apart = before & after
        assert found.top_token_ids.shape == told_apart.shape
        equal = found.top_token_ids == expected.top_ids[:, :K]
        assert equal[told_apart].all()
        assert np.abs(found.top_logprobs - expected.top_logprobs[:, :K]).max() <= within
        clear += told_apart.mean()
    assert clear / len(compared.items) > 0.9


def test_log_tail_masses(compared: Comparison) -> None:
    for found, expected, within in compared.items:
        assert np.abs(found.log_tail_masses - expected.log_tail_masses).max() <= 2 * within


def test_entropy_and_logsumexp_of_every_row(compared: Comparison) -> None:
    for found, expected, within in compared.items:
        # The level of the logits and the spread of a row may be off by more than its log-probs.
        assert np.abs(found.entropies - expected.entropies).max() <= 2 * within
        assert np.abs(found.logsumexps - expected.logsumexps).max() <= 2 * within


def test_ranks(compared: Comparison) -> None:
    """Exact save for tokens within 1e-4 of the realised one, which may fall on either side."""
    for found, expected, _ in compared.items:
        assert (found.ranks > expected.larger).all()
        assert (found.ranks <= expected.as_large).all()


def test_rank_and_top_k_agree(compared: Comparison) -> None:
    """Rank <= K exactly when the realised token is listed, and then it is its place."""
    for (g, c), found in compared.answer.items.items():
        ids = np.array(compared.pairs[g][1][c])
        listed = found.top_token_ids[: len(ids)] == ids[:, None]
        assert (listed.any(axis=1) == (found.ranks <= K)).all()
        rows, places = listed.nonzero()
        assert (found.ranks[rows] == places + 1).all()


def test_without_processing_the_processed_logprob_is_the_logprob(compared: Comparison) -> None:
    for found, _, _ in compared.items:
        assert (found.processed_logprobs == found.logprobs).all()
        assert (found.log_kept_masses == 0).all()
        assert (found.support_sizes == compared.vocab_size).all()


def test_usage(compared: Comparison) -> None:
    """A prompt is charged once; the plain path computes it for every completion."""
    usage = compared.answer.usage
    sizes = [(len(p), [len(ids) for ids in completions]) for p, completions in compared.pairs]
    assert sum(u.prompt_tokens for u in usage) == sum(p for p, _ in sizes)
    assert sum(u.completion_tokens for u in usage) == sum(sum(c) for _, c in sizes)
    times = [1 if compared.packed else len(c) for _, c in sizes]
    assert sum(u.computed_tokens for u in usage) == sum(
        p * n + sum(c) for (p, c), n in zip(sizes, times, strict=True)
    )
    assert sum(u.head_rows for u in usage) == sum(sum(c) + len(c) for _, c in sizes)


@pytest.mark.smollm2
def test_the_same_tokens_of_smollm2(smollm2: LoadedModel, plain_smollm2: Any) -> None:
    """As `test_greedy` asks it of the small model; here, where both are loaded already."""
    assert smollm2.codec is not None
    prompt = smollm2.codec.encode("The capital of France is", add_special_tokens=True)
    answer = sample(smollm2, prompt, max_tokens=12, return_text=True)
    assert answer[0, 0].token_ids == plain.generate(plain_smollm2, prompt, 12)
    assert "Paris" in answer[0, 0].text
