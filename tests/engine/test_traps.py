"""What engines that score got wrong. Each wrong variant shipped somewhere; here it must be caught
by the very check that the engine passes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from scoring_service.engine.events import CallEvent, CallFinished, SampleSlice, ScoreSlice
from scoring_service.engine.loading.loader import LoadedModel
from scoring_service.types import Call, Processing, RowBlock, RowWants, SampleCall, ScoreCall, Usage
from tests.engine import plain
from tests.engine.driving import engine_of
from tests.engine.sampling import Sampled, task
from tests.engine.scoring import Scored, completion, group, groups

Step = list[CallEvent]
Variant = Callable[[Step], Step]
"""What the events of a step become."""

_RNG = np.random.default_rng(0)
PROMPT: list[int] = _RNG.integers(0, 2048, 150).tolist()
COMPLETION: list[int] = _RNG.integers(0, 2048, 200).tolist()
OTHER: list[int] = _RNG.integers(0, 2048, 200).tolist()
TOKENS = 60
WITH_LIST, WITHOUT, SAMPLES, AGAIN = 1, 2, 3, 4
"""Ids of the calls."""
BOUND = 1e-4
"""Nats between float32 in two programs; neighbouring rows are whole nats apart."""


def as_it_is(step: Step) -> Step:
    return step


def calls() -> tuple[Call, ...]:
    """Beside one another: samples are drawn, a list is wanted of one call and none of another."""
    drawn = task(PROMPT[:9], n=2, max_tokens=TOKENS, processing=Processing(), ignore_eos=True)
    return (
        SampleCall(SAMPLES, (drawn,)),
        ScoreCall(WITH_LIST, tuple(groups([(PROMPT, [COMPLETION])])), RowWants(top_k=3)),
        ScoreCall(WITHOUT, tuple(groups([(PROMPT[:3], [OTHER])])), RowWants()),
    )


class Answers:
    """What comes of the calls, and then of the first one again, whose prompt is kept by then."""

    def __init__(self, loaded: LoadedModel, variant: Variant) -> None:
        self.engine = engine_of(loaded, max_batch_tokens=160)
        self.scored: dict[int, Scored] = {}
        self.sampled: dict[int, Sampled] = {}
        self.usage: dict[int, Usage] = {}
        self.steps: list[Step] = []
        self._run(variant, *calls())
        self._run(
            variant, ScoreCall(AGAIN, tuple(groups([(PROMPT, [COMPLETION])])), RowWants(top_k=3))
        )

    def _run(self, variant: Variant, *submitted: Call) -> None:
        for call in submitted:
            self.engine.submit(call)
            self._step(variant)
        while self.engine.can_step:
            self._step(variant)

    def _step(self, variant: Variant) -> None:
        step = list(self.engine.step())
        self.steps.append(step)
        for event in step:
            if isinstance(event, ScoreSlice | SampleSlice):
                self.engine.add_credit(event.call_id, event.size)
        for event in variant(step):
            if isinstance(event, ScoreSlice):
                self.scored.setdefault(event.call_id, Scored([])).slices.append(event)
            elif isinstance(event, SampleSlice):
                self.sampled.setdefault(event.sample_index, Sampled([])).slices.append(event)
            elif isinstance(event, CallFinished):
                self.usage[event.call_id] = event.usage


def scores(step: Step) -> list[ScoreSlice]:
    return [event for event in step if isinstance(event, ScoreSlice)]


def check(answers: Answers, model: Any) -> None:
    """Every row of every call, against the plain model."""
    for call_id, prompt, ids in (
        (WITH_LIST, PROMPT, COMPLETION),
        (WITHOUT, PROMPT[:3], OTHER),
        (AGAIN, PROMPT, COMPLETION),
    ):
        rows_T_V = plain.log_softmax(plain.row_logits(model, prompt, ids)[:-1])
        found = answers.scored[call_id]
        assert found.row_indices == list(range(len(ids)))
        assert_near(found.logprobs, rows_T_V[np.arange(len(ids)), ids])
        if call_id != WITHOUT:
            assert all(s.block.top_logprobs is not None for s in found.slices), "one was wanted"
            assert_near(found.top_logprobs, -np.sort(-rows_T_V, axis=1)[:, :3])
    for index in (0, 1):
        drawn = answers.sampled[index]
        assert len(drawn.token_ids) == TOKENS
        rows_T_V = plain.log_softmax(plain.row_logits(model, PROMPT[:9], drawn.token_ids)[:-1])
        assert_near(drawn.logprobs, rows_T_V[np.arange(TOKENS), drawn.token_ids])


def assert_near(found: np.ndarray, expected: np.ndarray) -> None:
    assert found.shape == expected.shape
    assert np.abs(found - expected).max() < BOUND


def test_the_engine_answers_every_row(tiny_packed: LoadedModel, plain_tiny: Any) -> None:
    """In the very situations in which the variants below went wrong."""
    answers = Answers(tiny_packed, as_it_is)
    check(answers, plain_tiny)
    steps = answers.steps
    assert any(scores(s) and any(isinstance(e, SampleSlice) for e in s) for s in steps), "mixed"
    assert any({e.call_id for e in scores(s)} >= {WITH_LIST, WITHOUT} for s in steps)
    assert len(answers.scored[WITH_LIST].slices) > 2, "chunks"
    assert answers.usage[AGAIN].cached_tokens > 0, "a hit"


# --- what shipped elsewhere


def one_mode_for_the_step(step: Step) -> Step:
    """A step with scoring is a prefill: whoever decodes in it has no mode, and no token."""
    return [e for e in step if not (scores(step) and isinstance(e, SampleSlice))]


def lists_for_all_or_none(step: Step) -> Step:
    """`all(wants_a_list)`: one row without switches it off for the step."""
    if all(event.block.top_logprobs is not None for event in scores(step)):
        return step
    return with_blocks(step, lambda e: replace(e.block, top_token_ids=None, top_logprobs=None))


def only_the_last_chunk(step: Step) -> Step:
    return [e for e in step if not isinstance(e, ScoreSlice) or e.last]


def only_the_first_chunk(step: Step) -> Step:
    return [e for e in step if not isinstance(e, ScoreSlice) or e.start == 0]


def shifted_on_a_hit(step: Step) -> Step:
    """The row that predicts the first token after the cached ones was never computed: each entry is
    its neighbour's."""

    def block(event: ScoreSlice) -> RowBlock:
        if event.call_id != AGAIN:
            return event.block
        return replace(event.block, logprobs=np.roll(event.block.logprobs, -1))

    return with_blocks(step, block)


def a_stub(step: Step) -> Step:
    """No value where one is due, and nobody is told."""
    none = np.empty(0, dtype=np.float32)
    lists = np.empty((0, 3), dtype=np.float32)
    return with_blocks(step, lambda e: RowBlock(0, none, top_logprobs=lists))


def with_blocks(step: Step, block: Callable[[ScoreSlice], RowBlock]) -> Step:
    return [replace(e, block=block(e)) if isinstance(e, ScoreSlice) else e for e in step]


@pytest.mark.parametrize(
    "variant",
    [
        one_mode_for_the_step,
        lists_for_all_or_none,
        only_the_last_chunk,
        only_the_first_chunk,
        shifted_on_a_hit,
        a_stub,
    ],
)
def test_what_other_engines_answer_is_caught(
    tiny_packed: LoadedModel, plain_tiny: Any, variant: Variant
) -> None:
    with pytest.raises((AssertionError, KeyError)):
        check(Answers(tiny_packed, variant), plain_tiny)


def test_a_list_and_candidates_cost_one_forward(tiny_packed: LoadedModel) -> None:
    """The cache holds keys and values, no hidden states: who asks in two calls computes each row of
    the completion twice."""
    candidates = np.full((1, 4), 7, dtype=np.int32)
    ids = COMPLETION[:70]

    def computed(*wanted: tuple[int, np.ndarray | None]) -> int:
        engine, total = engine_of(tiny_packed), 0
        for top_k, ids_1_C in wanted:
            parts = [group(PROMPT, [completion(ids, candidates=ids_1_C)])]
            engine.submit(ScoreCall(1, tuple(parts), RowWants(top_k=top_k)))
            while engine.can_step:
                for event in engine.step():
                    if isinstance(event, ScoreSlice):
                        engine.add_credit(event.call_id, event.size)
                        assert (event.block.top_logprobs is None) is (top_k == 0)
                        assert (event.block.candidate_logprobs is None) is (ids_1_C is None)
                    elif isinstance(event, CallFinished):
                        total += event.usage.computed_tokens
        return total

    def check_cost(*wanted: tuple[int, np.ndarray | None]) -> None:
        assert computed(*wanted) == len(PROMPT) + len(ids)

    check_cost((3, candidates))
    with pytest.raises(AssertionError):
        check_cost((3, None), (0, candidates))
