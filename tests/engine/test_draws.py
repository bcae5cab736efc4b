"""Which token is drawn, and what is said of it, from transformers' logits in float64."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from scipy import stats

from scoring_service.engine.loading.loader import LoadedModel
from scoring_service.types import Processing
from tests.engine import plain
from tests.engine.poison import poison_token
from tests.engine.sampling import run, sample, task
from tests.kernels import oracle

WITHIN = 1e-4
PROMPT = np.random.default_rng(1).integers(0, 2048, size=7).tolist()
SEED = (1 << 63) + 12345

SETTINGS = [
    Processing(),
    Processing(temperature=3.0, top_k=50),
    Processing(temperature=2.0, top_k=200, top_p=0.9, min_p=0.001),
]


def rows(network: Any, ids: list[int], temperature: float) -> oracle.F32:
    logits = plain.row_logits(network, PROMPT, ids)[:-1].astype(np.float32)
    return oracle.scaled(logits, temperature)


@pytest.mark.parametrize("setting", SETTINGS, ids=str)
def test_the_race_of_the_contract_decides(
    tiny: LoadedModel, plain_tiny: Any, setting: Processing
) -> None:
    """Random numbers of (seed, sample index, absolute position, token id), and nothing else."""
    first = 5
    answer = sample(
        tiny,
        PROMPT,
        n=2,
        seed=SEED,
        first_sample_index=first,
        processing=setting,
        max_tokens=6,
        ignore_eos=True,
    )
    checked = 0
    for index in (first, first + 1):
        drawn = answer[0, index]
        for n, x_V in enumerate(rows(plain_tiny, drawn.token_ids, setting.temperature)):
            keep_V = oracle.support(x_V, setting.top_k, setting.top_p, setting.min_p)
            keys = oracle.race(x_V, keep_V, SEED, index, len(PROMPT) + n)
            best, second = np.argsort(keys)[:2]
            if keys[second] - keys[best] > 1e-3:  # else an error of a logit could decide
                assert drawn.token_ids[n] == best
                checked += 1
    assert checked >= 10


@pytest.mark.parametrize("setting", SETTINGS, ids=str)
def test_logprobs_of_drawn_tokens(tiny: LoadedModel, plain_tiny: Any, setting: Processing) -> None:
    """Decoded token by token with a cache; expected from one forward pass over everything."""
    drawn = sample(
        tiny, PROMPT, seed=3, processing=setting, max_tokens=50, ignore_eos=True, top_logprobs=9
    )[0, 0]
    compared = 0
    for n, x_V in enumerate(rows(plain_tiny, drawn.token_ids, setting.temperature)):
        token_id = drawn.token_ids[n]
        expected = oracle.logprobs(x_V)
        assert drawn.logprobs[n] == pytest.approx(expected[token_id], abs=WITHIN)
        listed = drawn.top_token_ids[n]
        assert (np.diff(drawn.top_logprobs[n]) <= 0).all()
        np.testing.assert_allclose(drawn.top_logprobs[n], expected[listed], atol=WITHIN)
        np.testing.assert_allclose(drawn.top_logprobs[n], np.sort(expected)[:-10:-1], atol=WITHIN)
        keep_V = oracle.support(x_V, setting.top_k, setting.top_p, setting.min_p)
        if (
            keep_V[token_id]
            and not oracle.nucleus_edge(x_V, setting.top_k, setting.top_p, 1e-4).any()
        ):
            processed = oracle.processed_logprobs(x_V, keep_V)[token_id]
            assert drawn.processed_logprobs[n] == pytest.approx(processed, abs=WITHIN)
            compared += 1
    assert compared >= 40, "nearly all of them are in the support, and no edge is near"


def test_the_distribution(tiny: LoadedModel, plain_tiny: Any) -> None:
    """Chi-square of first tokens; the kernels' tests draw more, from made-up rows."""
    setting = Processing(temperature=3.0, top_k=30, top_p=0.95)
    count = 3000 if tiny.info.packed else 1000
    answer = sample(tiny, PROMPT, n=count, seed=1, processing=setting, max_tokens=1)
    tokens = [drawn.token_ids[0] for drawn in answer.items.values()]
    x_V = rows(plain_tiny, tokens[:1], setting.temperature)[0]
    keep_V = oracle.support(x_V, setting.top_k, setting.top_p)
    expected = np.exp(oracle.processed_logprobs(x_V, keep_V))
    observed = np.bincount(tokens, minlength=len(x_V))
    assert keep_V.sum() > 10
    assert observed[~keep_V].sum() == 0
    assert stats.chisquare(observed[keep_V], expected[keep_V] * count).pvalue > 1e-4


def test_a_sample_is_the_same_alone_and_among_others(tiny: LoadedModel) -> None:
    """Whatever its neighbours are: other samples of the call, other prompts, another call."""
    settings = {"seed": SEED, "processing": Processing(), "max_tokens": 12, "ignore_eos": True}
    together = sample(tiny, PROMPT, n=6, **settings)
    for index in range(6):
        alone = sample(tiny, PROMPT, first_sample_index=index, **settings)
        assert alone[0, index].bits == together[0, index].bits
    halves = [sample(tiny, PROMPT, n=3, first_sample_index=i, **settings) for i in (0, 3)]
    joined = {**halves[0].items, **halves[1].items}
    assert {k: v.bits for k, v in joined.items()} == {k: v.bits for k, v in together.items.items()}
    assert len({tuple(drawn.token_ids) for drawn in together.items.values()}) == 6


def test_a_continued_sample_draws_on(tiny: LoadedModel) -> None:
    """Positions are absolute: a prompt longer by the tokens drawn goes on as the sample did."""
    settings = {"seed": 8, "processing": Processing(), "ignore_eos": True}
    whole = sample(tiny, PROMPT, max_tokens=20, **settings)[0, 0].token_ids
    rest = sample(tiny, PROMPT + whole[:9], max_tokens=11, **settings)[0, 0].token_ids
    assert whole[9:] == rest


@pytest.mark.parametrize("seed", [0, 1, 1 << 32, (1 << 64) - 1])
def test_every_seed_is_echoed_and_its_own(tiny: LoadedModel, seed: int) -> None:
    settings = {"processing": Processing(), "max_tokens": 16, "ignore_eos": True}
    drawn = sample(tiny, PROMPT, seed=seed, **settings)[0, 0]
    other = sample(tiny, PROMPT, seed=seed ^ 0x1234, **settings)[0, 0]
    assert {piece.seed for piece in drawn.slices} == {seed}
    assert drawn.token_ids != other.token_ids


def test_usage(tiny: LoadedModel) -> None:
    """The prompt is computed once; the last token of a sample is never fed back."""
    answer = sample(tiny, PROMPT, n=3, max_tokens=5, processing=Processing(), ignore_eos=True)
    total = {
        name: sum(getattr(u, name) for u in answer.usage) for name in answer.usage[0].__slots__
    }
    assert total["prompt_tokens"] == len(PROMPT)
    assert total["sampled_tokens"] == total["head_rows"] == 15
    assert total["computed_tokens"] == len(PROMPT) + 3 * 4


def test_a_row_that_is_no_distribution_fails_its_prompt_alone(
    tiny: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    poison_token(tiny, 13, monkeypatch)
    tasks = [task([13], n=2, first_sample_index=4, index=0), task([14], index=1, max_tokens=2)]
    answer = run(tiny, tasks)
    assert [(f.index, f.part, f.fault.reason) for f in answer.failures] == [
        (0, 4, "NON_FINITE_LOGITS"),
        (0, 5, "NON_FINITE_LOGITS"),
    ]
    assert len(answer[1, 0].token_ids) == 2


def test_a_sample_that_cannot_go_on_leaves_its_prompts_others_alone(
    tiny: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of four that begin apart, one draws a token after which logits are no numbers."""
    hot = Processing(temperature=3.0)
    settings = {"n": 4, "max_tokens": 3, "processing": hot, "ignore_eos": True}
    expected = sample(tiny, PROMPT, **settings)
    broken = expected[0, 1].token_ids[0]
    first = [expected[0, index].token_ids[0] for index in range(4)]
    assert first.count(broken) == 1, "no other begins with it"
    poison_token(tiny, broken, monkeypatch)
    found = sample(tiny, PROMPT, **settings)
    assert [(f.part, f.fault.reason) for f in found.failures] == [(1, "NON_FINITE_LOGITS")]
    for index in (0, 2, 3):
        assert found[0, index].bits == expected[0, index].bits
