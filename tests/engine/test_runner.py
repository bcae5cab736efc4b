"""Turns, priority, credit, cancelling and bugs, with made-up work in place of a model."""

from __future__ import annotations

from collections.abc import Callable, Generator
from dataclasses import replace

import numpy as np
import pytest

from scoring_service.engine import runner as runner_module
from scoring_service.engine.events import (
    CallEvent,
    CallFailed,
    CallFinished,
    CallStarted,
    ItemFailed,
    ScoreSlice,
)
from scoring_service.engine.runner import INITIAL_CREDIT, Progress, Runner
from scoring_service.errors import Fault, Reason
from scoring_service.types import Call, RowBlock, RowWants, ScoreCall, Usage

Work = Callable[[Call], Generator[Progress, None, None]]


def call(call_id: int, priority: int = 0) -> ScoreCall:
    return ScoreCall(call_id, (), RowWants(), priority=priority)


def piece(call_id: int, size: int = 100) -> ScoreSlice:
    block = RowBlock(rows=1, logprobs=np.zeros(1, dtype=np.float32))
    return ScoreSlice(call_id, 0, 0, 0, 1, 0, block, False, 0, size)


class Script:
    """Work of `steps` slices a call; keeps a record of who worked when and who was let go."""

    def __init__(self, steps: int = 3, size: int = 100) -> None:
        self.steps, self.size = steps, size
        self.worked: list[int] = []
        self.closed: list[int] = []
        self.held: list[Generator[Progress, None, None]] = []

    def __call__(self, of: Call) -> Generator[Progress, None, None]:
        # Held, so that only the runner closes them and not the end of their last reference.
        self.held.append(self._slices(of))
        return self.held[-1]

    def _slices(self, of: Call) -> Generator[Progress, None, None]:
        try:
            for _ in range(self.steps):
                self.worked.append(of.call_id)
                yield piece(of.call_id, self.size)
        finally:
            self.closed.append(of.call_id)


class Bugs:
    """Collects what the runner reports."""

    def __init__(self) -> None:
        self.seen: list[tuple[Call, BaseException]] = []

    def __call__(self, failing: Call, error: BaseException) -> None:
        self.seen.append((failing, error))


def runner_of(work: Work, *calls: ScoreCall) -> Runner:
    runner = Runner(work, Bugs())
    for one in calls:
        runner.submit(one)
    return runner


def drain(runner: Runner, at_most: int = 1000) -> list[CallEvent]:
    """Steps until nothing can be done."""
    events: list[CallEvent] = []
    for _ in range(at_most):
        if not runner.can_step:
            return events
        events.extend(runner.step())
    raise AssertionError("the runner does not come to an end")


def test_a_call_starts_answers_and_finishes() -> None:
    events = drain(runner_of(Script(steps=2), call(7)))
    kinds = [type(event) for event in events]
    assert kinds == [CallStarted, ScoreSlice, ScoreSlice, CallFinished]
    assert {event.call_id for event in events} == {7}


def test_a_call_starts_when_it_is_first_worked_on() -> None:
    runner = runner_of(Script(), call(1), call(2))
    first = runner.step()
    assert [type(event) for event in first] == [CallStarted, ScoreSlice]
    assert {event.call_id for event in first} == {1}


def test_calls_take_turns() -> None:
    script = Script(steps=4)
    drain(runner_of(script, call(1), call(2), call(3)))
    assert script.worked == [1, 2, 3] * 4


def test_a_late_call_does_not_wait_for_a_long_one() -> None:
    script = Script(steps=50)
    runner = runner_of(script, call(1))
    for _ in range(20):
        runner.step()
    script.steps = 3
    runner.submit(call(2))
    for _ in range(6):
        runner.step()
    assert script.worked[20:].count(2) == 3


def test_higher_priority_goes_first() -> None:
    script = Script(steps=3)
    drain(runner_of(script, call(1), call(2, priority=5), call(3, priority=5), call(4, -1)))
    assert script.worked == [2, 3, 2, 3, 2, 3, 1, 1, 1, 4, 4, 4]


def test_a_call_without_credit_is_not_worked_on() -> None:
    """Until its reader has taken something; the others go on."""
    script = Script(steps=4, size=INITIAL_CREDIT // 2)
    runner = runner_of(script, call(1))
    drain(runner)
    assert script.worked == [1, 1]
    assert not runner.can_step
    runner.add_credit(1, 1)
    assert runner.can_step
    runner.step()
    assert script.worked == [1, 1, 1]
    assert not runner.can_step
    runner.submit(call(2))
    drain(runner)
    assert script.worked == [1, 1, 1, 2, 2]
    runner.add_credit(1, INITIAL_CREDIT)
    runner.add_credit(2, 2 * INITIAL_CREDIT)
    events = drain(runner)
    assert {event.call_id for event in events if isinstance(event, CallFinished)} == {1, 2}


def test_priority_without_credit_does_not_block() -> None:
    script = Script(steps=2, size=INITIAL_CREDIT)
    runner = runner_of(script, call(1, priority=9), call(2))
    drain(runner)
    assert script.worked == [1, 2]


def test_faults_of_items_cost_no_credit() -> None:
    def work(of: Call) -> Generator[Progress, None, None]:
        for index in range(3):
            yield ItemFailed(of.call_id, index, 0, Fault(Reason.INVALID_FIELD, "no"))

    events = drain(runner_of(work, call(1)))
    assert [type(event) for event in events].count(ItemFailed) == 3


def test_a_cancelled_call_is_forgotten() -> None:
    """Its generator is closed, which frees what it holds."""
    script = Script()
    runner = runner_of(script, call(1), call(2))
    runner.step()
    runner.cancel(1)
    assert script.closed == [1]
    events = drain(runner)
    assert {event.call_id for event in events} == {2}


def test_a_call_can_be_cancelled_before_it_begins() -> None:
    runner = runner_of(Script(), call(1))
    runner.cancel(1)
    assert not runner.can_step


@pytest.mark.parametrize("call_id", [3, 99])
def test_commands_for_calls_that_are_gone_are_ignored(call_id: int) -> None:
    runner = runner_of(Script(), call(3))
    drain(runner)
    runner.cancel(call_id)
    runner.add_credit(call_id, 5)
    assert not runner.can_step


def test_a_bug_ends_its_call_alone() -> None:
    """The caller hears of it without a traceback; the log has the exception."""
    script = Script(steps=4)

    def work(of: Call) -> Generator[Progress, None, None]:
        if of.call_id == 2:
            yield piece(2)
            raise KeyError("secret of the implementation")
        yield from script(of)

    bugs = Bugs()
    runner = Runner(work, bugs)
    for call_id in (1, 2, 3):
        runner.submit(call(call_id))
    events = drain(runner)
    (failed,) = [event for event in events if isinstance(event, CallFailed)]
    assert failed.call_id == 2
    assert failed.fault.reason == Reason.INTERNAL_ERROR
    assert "secret" not in failed.fault.message
    assert "Traceback" not in failed.fault.message
    ((failing, error),) = bugs.seen
    assert failing.call_id == 2
    assert isinstance(error, KeyError)
    finished = {event.call_id for event in events if isinstance(event, CallFinished)}
    assert finished == {1, 3}
    assert events.index(failed) < len(events) - 2, "the others did not go on"


def test_usage_adds_up() -> None:
    def work(_of: Call) -> Generator[Progress, None, None]:
        yield Usage(prompt_tokens=3)
        yield None
        yield Usage(completion_tokens=4, computed_tokens=7, head_rows=4, cached_tokens=2)
        yield Usage(prompt_tokens=10, sampled_tokens=5)

    (finished,) = [e for e in drain(runner_of(work, call(1))) if isinstance(e, CallFinished)]
    usage = finished.usage
    assert usage.prompt_tokens == 13
    assert usage.completion_tokens == 4
    assert usage.cached_tokens == 2
    assert usage.computed_tokens == 7
    assert usage.sampled_tokens == 5
    assert usage.head_rows == 4


def test_time_is_waiting_and_working(monkeypatch: pytest.MonkeyPatch) -> None:
    """Waiting ends with the first step; the time of other calls' steps is not this call's."""
    now = [100.0]
    monkeypatch.setattr(runner_module.time, "monotonic", lambda: now[0])

    def work(of: Call) -> Generator[Progress, None, None]:
        for _ in range(2):
            now[0] += of.call_id
            yield None

    runner = Runner(work, Bugs())
    runner.submit(call(1))
    runner.submit(call(10))
    now[0] += 50.0
    usage = {e.call_id: e.usage for e in drain(runner) if isinstance(e, CallFinished)}
    assert (usage[1].queue_seconds, usage[1].compute_seconds) == (50.0, 2.0)
    assert (usage[10].queue_seconds, usage[10].compute_seconds) == (51.0, 20.0)


def test_a_call_whose_caller_no_longer_waits_costs_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr(runner_module.time, "monotonic", lambda: now[0])
    script = Script(steps=3)
    runner = Runner(script, Bugs())
    runner.submit(replace(call(1), deadline=101.0))
    runner.submit(call(2))
    now[0] = 101.5
    events = drain(runner)
    (failed,) = [event for event in events if isinstance(event, CallFailed)]
    assert (failed.call_id, failed.fault.reason) == (1, Reason.DEADLINE_EXCEEDED)
    assert script.worked == [2, 2, 2]
