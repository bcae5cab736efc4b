"""What steps hold of each call: rows of samples, and of scoring and prompts beside them."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from scoring_service.engine.events import CallEvent
from scoring_service.engine.model.context_cost import ContextCost
from scoring_service.engine.packed.planning.step_plan import StepPlan
from scoring_service.engine.packed.setup import beside_samples
from scoring_service.types import EngineConfig, SampleCall
from tests.engine.without_model import EngineWithoutModel, sample, score

BESIDE = 28
TOKENS = 1024


class Watched(EngineWithoutModel):
    """Notes how many rows each call has in each step."""

    def __init__(self, pages: int = 4000, **settings: Any) -> None:
        fields = {
            "max_batch_tokens": TOKENS,
            "cuts": ContextCost(),
            "beside_samples": BESIDE,
            **settings,
        }
        super().__init__(pages, **fields)
        self.drawn: list[Counter[int]] = []
        """Of samples, by call id, a step each."""
        self.read: list[Counter[int]] = []
        """Of scoring and prompts."""

    def _compute(self, plan: StepPlan) -> list[CallEvent]:
        computed = {id(piece.segment): piece.tokens for piece in plan.pieces}
        self.drawn.append(Counter(run.call.call_id for run, _, _ in plan.decode_tokens))
        read: Counter[int] = Counter()
        for run, unit in plan.units:
            read[run.call.call_id] += computed.get(id(unit.segment), 0)
        self.read.append(read)
        return super()._compute(plan)

    def forget(self) -> None:
        """Of steps so far."""
        self.drawn.clear()
        self.read.clear()


def resumed(call_id: int, drawn: int, max_tokens: int, priority: int = 0) -> SampleCall:
    """One sample of which another worker drew so many tokens."""
    call = sample(call_id, 16, max_tokens, priority=priority)
    before = ((0, np.ones(drawn, dtype=np.int32)),)
    return replace(call, prompts=(replace(call.prompts[0], drawn=before),))


def several(call_id: int, *prompts: int, part_of: int | None = None) -> SampleCall:
    """A sample of each of some prompts, by their lengths."""
    made = (sample(call_id, length, 500).prompts[0] for length in prompts)
    tasks = tuple(replace(task, index=index) for index, task in enumerate(made))
    return SampleCall(call_id, tasks, part_of=part_of)


def test_the_samples_of_a_call_wait_for_its_other_prompts() -> None:
    """It ends with its last one: all are drawn together, and none alone beside a trickle."""
    engine = Watched(pages=9000)
    engine.submit(several(1, *[160] * 40))
    engine.run(9)
    assert sum(step[1] for step in engine.read) == 40 * 160
    assert min(step[1] for step in engine.read[:6]) >= 6 * 160
    assert engine.drawn[-1] == Counter({1: 40})


def test_parts_of_a_call_wait_for_one_another() -> None:
    engine = Watched(pages=9000)
    engine.submit(several(11, *[160] * 20, part_of=1))
    engine.submit(several(12, *[160] * 20, part_of=1))
    engine.run(9)
    assert engine.drawn[-1] == Counter({11: 20, 12: 20})


def test_samples_do_not_wait_for_the_prompts_of_another_call() -> None:
    engine = Watched(pages=9000)
    engine.submit(several(1, *[16] * 10))
    engine.run(4)
    engine.submit(several(2, *[160] * 40))
    engine.forget()
    engine.run(20)
    assert [step[1] for step in engine.drawn] == [10] * 20
    assert max(step[2] for step in engine.read) == BESIDE
    assert engine._calls.by_id[2].open_units < 2 * 160, "no pages for what does not join soon"


def test_samples_do_not_wait_for_prompts_that_have_no_room() -> None:
    """Of their own call, so that scoring meanwhile does not join as if they were waited for."""
    engine = Watched(pages=220)
    engine.submit(several(1, *[16] * 10, 3000))
    engine.run(4)
    engine.submit(score(2, 60, 60, groups=40))
    engine.forget()
    engine.run(20)
    assert [step[1] for step in engine.drawn] == [10] * 20
    assert max(step[2] for step in engine.read) == BESIDE


def test_everybody_draws_beside_a_sample_that_catches_up() -> None:
    engine = Watched()
    engine.submit(sample(1, 16, 2000, n=19))
    engine.run(4)
    engine.submit(resumed(2, 3000, 4000))
    engine.run(3)
    engine.forget()
    engine.run(20)
    assert [step[1] for step in engine.drawn] == [19] * 20
    assert [step[2] for step in engine.drawn] == [1 + BESIDE] * 20
    while engine.drawn[-1][2] != 1:
        engine.run(1)
    assert engine.steps < 150


def test_of_many_samples_one_that_catches_up_takes_as_many_rows() -> None:
    engine = Watched()
    engine.submit(sample(1, 16, 2000, n=99))
    engine.run(4)
    engine.submit(resumed(2, 3000, 4000))
    engine.run(5)
    assert engine.drawn[-1] == Counter({1: 99, 2: 1 + 100})


def test_where_nobody_draws_samples_catch_up_at_once() -> None:
    engine = Watched()
    engine.submit(resumed(1, 3000, 4000))
    engine.submit(resumed(2, 900, 4000))
    engine.run(6)
    caught_up = [step for step in engine.drawn if step]
    assert caught_up[0] == Counter({1: 1022, 2: 1})
    assert sum(step[1] for step in caught_up[:3]) >= 3000


def test_scoring_and_samples_that_catch_up_share_what_joins_those_that_draw() -> None:
    engine = Watched()
    engine.submit(sample(1, 16, 2000, n=10))
    engine.run(4)
    engine.submit(resumed(2, 3000, 4000))
    engine.run(3)
    engine.submit(score(3, 60, 60, groups=50))
    engine.forget()
    engine.run(30)
    assert [step[1] for step in engine.drawn] == [10] * 30
    assert [step[2] for step in engine.drawn] == [1 + BESIDE // 2] * 30
    assert all(step[3] <= BESIDE // 2 for step in engine.read)
    # Less than eight tokens are left where a piece would be too small.
    assert sum(step[3] for step in engine.read) > 30 * (BESIDE // 2 - 8)


def test_a_preempted_sample_takes_no_more_than_its_share_when_it_resumes() -> None:
    """Pages are short, so that the youngest gives up its own again and again."""
    engine = Watched(pages=150)
    for call_id in range(1, 9):
        engine.submit(sample(call_id, 16, 600))
    ended = []
    while not ended:
        ended += engine.run(1)
    assert max(step.total() - len(step) for step in engine.drawn) == BESIDE
    assert {*ended, *engine.run(10_000)} == set(range(1, 9))


def test_urgent_scoring_has_whole_steps_beside_samples_that_are_not() -> None:
    engine = Watched()
    engine.submit(sample(1, 16, 2000, n=20, priority=-100))
    engine.run(4)
    engine.submit(score(2, 64, 64, groups=40, priority=100))
    engine.forget()
    assert 2 in engine.run(5)
    assert [step[2] for step in engine.read] == [1024] * 5
    assert [step[1] for step in engine.drawn] == [0] * 5
    engine.forget()
    engine.run(3)
    assert [step[1] for step in engine.drawn] == [20] * 3


def test_samples_of_lower_priority_take_what_urgent_scoring_leaves() -> None:
    engine = Watched()
    engine.submit(sample(1, 16, 2000, n=20))
    engine.run(4)
    engine.submit(score(2, 64, 64, groups=4, priority=1))
    engine.submit(score(3, 64, 64, groups=40))
    engine.forget()
    engine.run(1)
    assert (engine.read, engine.drawn) == ([Counter({2: 512})], [Counter({1: 20})])


def test_urgent_samples_go_before_urgent_scoring_and_others_behind_it() -> None:
    engine = Watched(max_batch_tokens=100)
    engine.submit(sample(1, 16, 2000, n=30, priority=1))
    engine.submit(sample(2, 16, 2000, n=60))
    engine.run(10)
    engine.submit(score(3, 64, 64, groups=40, priority=1))
    engine.forget()
    engine.run(5)
    assert [step[1] for step in engine.drawn] == [30] * 5
    assert all(step[3] > 50 for step in engine.read)
    held = [d.total() + r.total() for d, r in zip(engine.drawn, engine.read, strict=True)]
    assert max(held) <= 100
    engine.cancel(3)
    engine.forget()
    engine.run(1)
    assert engine.drawn == [Counter({1: 30, 2: 60})]


def test_urgent_samples_are_joined_by_scoring_as_if_it_were_as_urgent() -> None:
    def joined(priority: int) -> list[Counter[int]]:
        engine = Watched()
        engine.submit(sample(1, 16, 2000, n=3, priority=priority))
        engine.run(4)
        engine.submit(score(2, 60, 60, groups=40))
        engine.forget()
        engine.run(20)
        assert [step[1] for step in engine.drawn] == [3] * 20
        return engine.read

    assert joined(priority=1) == joined(priority=0)
    assert max(step[2] for step in joined(priority=1)) == BESIDE


def test_an_urgent_sample_that_catches_up_does_not_wait_for_others() -> None:
    engine = Watched()
    engine.submit(sample(1, 16, 2000, n=20))
    engine.run(4)
    engine.submit(resumed(2, 3000, 4000, priority=1))
    engine.run(5)
    caught_up = [step[2] for step in engine.drawn if step[2] > 1]
    assert caught_up == [1023, 1023, 954]


def test_samples_go_on_while_urgent_scoring_waits_for_room() -> None:
    """But for one that needs a page, which is left to what waits."""
    engine = Watched(pages=100)
    engine.submit(sample(1, 16, 1000, n=4))
    engine.run(500)
    engine.submit(score(2, 70 * 16, 64, priority=100))
    engine.forget()
    engine.run(5)
    assert [step[1] for step in engine.drawn] == [3] * 5


@pytest.mark.parametrize(
    ("kind", "chunk", "cuts", "most"),
    [("cpu", 64, True, 28), ("cpu", 64, False, 64), ("cuda", 256, False, 2048)],
)
def test_what_joins_a_sample_by_device(kind: str, chunk: int, cuts: bool, most: int) -> None:
    beside = beside_samples(EngineConfig("any"), chunk, torch.device(kind), cuts)
    engine = Watched(
        pages=40_000,
        max_batch_tokens=8192,
        chunk_size=chunk,
        cuts=ContextCost() if cuts else None,
        beside_samples=beside,
    )
    engine.submit(sample(1, 16, 2000))
    engine.run(4)
    engine.submit(score(2, 4 * chunk, 4 * chunk, groups=60))
    engine.forget()
    engine.run(6)
    assert [step[1] for step in engine.drawn] == [1] * 6
    assert [step[2] for step in engine.read] == [most] * 6


def test_fewer_tokens_of_a_long_prompt_join_a_sample_the_more_each_attends_to() -> None:
    engine = Watched(pages=40_000, cuts=ContextCost(doubling=1000))
    engine.submit(sample(1, 16, 2000))
    engine.run(4)
    engine.submit(score(2, 4000, 4))
    engine.forget()
    read = 0
    while read < 3900:
        engine.run(1)
        (joined,) = (step[2] for step in engine.read[-1:])
        assert 0 < joined <= max(8, round(BESIDE / (1 + read / 1000)))
        read += joined
    assert {step[1] for step in engine.drawn} == {1}


def test_whole_steps_are_filled_however_much_each_token_attends_to() -> None:
    """Of a call whose samples wait for its own prompts."""
    engine = Watched(pages=40_000, cuts=ContextCost(doubling=10))
    engine.submit(several(1, *[600] * 6))
    engine.run(3)
    assert min(step.total() for step in engine.read) > TOKENS - 64
