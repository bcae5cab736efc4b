"""The same requests, seven ways: what each of them answers, and how answers are compared."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from scoring_service.engine.events import CallEvent, CallFailed, SampleSlice, ScoreSlice
from scoring_service.engine.loading.loader import LoadedModel
from scoring_service.engine.packed.engine import PackedEngine
from scoring_service.models import tiny_model_path
from scoring_service.types import Processing, RowWants, SampleCall, ScoreCall
from tests.engine.driving import engine_of, finish
from tests.engine.loading import load_model
from tests.engine.sampling import Sampled, task
from tests.engine.scoring import Group, Scored, assert_same_bits, groups
from tests.engine.small_models import ARCHITECTURES, save_model

HOT = Processing(temperature=0.9, top_k=40, top_p=0.95)
CHUNK = 16
EVERYTHING_SMALL = RowWants.everything(top_k=9)
_BY_NAME = {a.name: a for a in ARCHITECTURES}

Scores = dict[tuple[int, int], Scored]
Samples = dict[tuple[int, int], Sampled]


def load_small(
    name: str, folder: Path, dtype: str, cpu_kernels: str = "auto", **settings: Any
) -> LoadedModel:
    source = tiny_model_path() if name == "packaged" else save_model(_BY_NAME[name], folder)
    loaded = load_model(source, dtype=dtype, chunk_size=CHUNK, cpu_kernels=cpu_kernels, **settings)
    assert (loaded.model.kernels is not None) == (cpu_kernels == "auto")
    return loaded


def score_call(pairs: list[Group], call_id: int = 1, **more: Any) -> ScoreCall:
    return ScoreCall(call_id, tuple(groups(pairs)), EVERYTHING_SMALL, next_token=True, **more)


def collect(events: Iterable[CallEvent]) -> Scores:
    items: Scores = {}
    for event in events:
        assert not isinstance(event, CallFailed)
        if isinstance(event, ScoreSlice) and event.call_id == 1:
            key = event.group_index, event.completion_index
            items.setdefault(key, Scored([])).slices.append(event)
    return items


def score(engine: PackedEngine, pairs: list[Group]) -> Scores:
    engine.submit(score_call(pairs))
    return collect(finish(engine))


def sample_call(prompts: list[list[int]], n: int = 2, call_id: int = 2, **more: Any) -> SampleCall:
    tasks = [
        task(prompt, n=n, seed=7, index=i, processing=HOT, ignore_eos=True, **more)
        for i, prompt in enumerate(prompts)
    ]
    return SampleCall(call_id, tuple(tasks), top_logprobs=3)


def sample(engine: PackedEngine, call: SampleCall) -> Samples:
    engine.submit(call)
    return samples_of(finish(engine), call.call_id)


def samples_of(events: Iterable[CallEvent], call_id: int) -> Samples:
    items: Samples = {}
    for event in events:
        if isinstance(event, SampleSlice) and event.call_id == call_id:
            key = event.prompt_index, event.sample_index
            items.setdefault(key, Sampled([])).slices.append(event)
    return items


def assert_equal(left: Scores, right: Scores) -> None:
    assert set(left) == set(right)
    for key in left:
        assert_same_bits(left[key], right[key])


def assert_close(left: Scores, right: Scores) -> None:
    assert set(left) == set(right)
    for key in left:
        np.testing.assert_allclose(left[key].logprobs, right[key].logprobs, atol=1e-5)
        np.testing.assert_allclose(left[key].top_logprobs, right[key].top_logprobs, atol=1e-5)


def assert_equal_samples(left: Samples, right: Samples) -> None:
    assert set(left) == set(right)
    for key in left:
        assert left[key].bits == right[key].bits
        assert left[key].top_token_ids.tobytes() == right[key].top_token_ids.tobytes()
        assert left[key].top_logprobs.tobytes() == right[key].top_logprobs.tobytes()


def assert_close_samples(left: Samples, right: Samples) -> None:
    """Up to where rounding let another token win, after which a sample is another one."""
    assert set(left) == set(right)
    for key, found in left.items():
        expected = right[key]
        pairs = zip(found.token_ids, expected.token_ids, strict=True)
        equal = next((n for n, (a, b) in enumerate(pairs) if a != b), len(found.token_ids))
        assert equal > 0
        np.testing.assert_allclose(
            found.logprobs[:equal], expected.logprobs[:equal], atol=1e-5, rtol=0
        )


@dataclass(frozen=True)
class Agreement:
    """What is asked of two answers to the same."""

    scores: Callable[[Scores, Scores], None]
    samples: Callable[[Samples, Samples], None]


SAME_BITS = Agreement(assert_equal, assert_equal_samples)
WITHIN_ROUNDING = Agreement(assert_close, assert_close_samples)


def seven_ways(
    loaded: LoadedModel, pairs: list[Group], agreement: Agreement, budgets: Sequence[int]
) -> None:
    """Alone, batched, shuffled, beside samples, under budgets, from the cache, prompts repeated."""
    equal = agreement.scores
    together = score(engine_of(loaded), pairs)
    assert {key: scored.row_indices for key, scored in together.items()} == {
        (g, c): list(range(len(ids) + 1))
        for g, (_, completions) in enumerate(pairs)
        for c, ids in enumerate(completions)
    }
    alone: Scores = {}
    repeated: Scores = {}
    for g, (prompt, completions) in enumerate(pairs):
        found = score(engine_of(loaded), [(prompt, completions)])
        alone |= {(g, c): scored for (_, c), scored in found.items()}
        for c, ids in enumerate(completions):
            repeated[g, c] = score(engine_of(loaded), [(prompt, [ids])])[0, 0]
    equal(alone, together)
    equal(repeated, together)  # the prompt computed for each completion anew

    order = list(range(len(pairs)))
    random.Random(0).shuffle(order)
    shuffled = score(engine_of(loaded), [pairs[g] for g in order])
    equal({(order[g], c): s for (g, c), s in shuffled.items()}, together)

    for budget in budgets:
        equal(score(engine_of(loaded, max_batch_tokens=budget), pairs), together)

    engine = engine_of(loaded, max_batch_tokens=48)
    score(engine, pairs)
    equal(score(engine, pairs), together)  # every prompt from the cache
    assert engine.cache.hit_tokens >= sum(len(prompt) for prompt, _ in pairs)
    _beside_samples(loaded, pairs, agreement, together)


def _beside_samples(
    loaded: LoadedModel, pairs: list[Group], agreement: Agreement, together: Scores
) -> None:
    """Neither the scores nor the samples notice the other."""
    sampling = sample_call([prompt for prompt, _ in pairs[:2]], max_tokens=12)
    drawn_alone = sample(engine_of(loaded), sampling)
    mixed = engine_of(loaded, max_batch_tokens=64)
    mixed.submit(sampling)
    events = [event for _ in range(3) for event in mixed.step()]
    mixed.submit(score_call(pairs))
    events += finish(mixed)
    agreement.scores(collect(events), together)
    agreement.samples(samples_of(events, sampling.call_id), drawn_alone)
