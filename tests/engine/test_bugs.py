"""Bugs in the packed engine: which calls end, and which go on."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from scoring_service.engine.attention.segments import DecodeToken
from scoring_service.engine.events import CallFailed, CallFinished
from scoring_service.engine.loading.loader import LoadedModel
from scoring_service.engine.packed.calls.sample_run import SampleRun
from scoring_service.engine.packed.calls.score_run import CompletionRun
from scoring_service.errors import Reason
from scoring_service.types import CompletionTask, GroupTask, ScoreCall
from tests.engine.driving import engine_of, finish
from tests.engine.scoring import Group
from tests.engine.seven_ways import assert_equal, collect, sample_call, score, score_call


def test_a_bug_while_planning_ends_one_call(
    tiny_packed: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Found when some of its completions are begun already, while other calls are under way."""
    engine = engine_of(tiny_packed)
    logged: list[int] = []
    engine._log_bug = lambda call, _: logged.append(call.call_id)
    begin = CompletionRun.begin

    def broken(
        call: ScoreCall, group: GroupTask, task: CompletionTask, *rest: Any
    ) -> CompletionRun:
        if call.call_id == 2 and (group.index, task.index) == (2, 1):
            raise ZeroDivisionError
        return begin(call, group, task, *rest)

    monkeypatch.setattr(CompletionRun, "begin", broken)
    pairs: list[Group] = [([5, 6, 7] * 20, [[6, 7] * 20, [8]]) for _ in range(3)]
    engine.submit(score_call(pairs))
    engine.submit(score_call(pairs, call_id=2))
    engine.submit(sample_call([[3, 4]], call_id=3, max_tokens=5))
    events = list(finish(engine))
    (failed,) = (e for e in events if isinstance(e, CallFailed))
    assert (failed.call_id, failed.fault.reason) == (2, "INTERNAL_ERROR")
    assert logged == [2]
    assert {e.call_id for e in events if isinstance(e, CallFinished)} == {1, 3}
    assert engine.free_pages == 400


def test_a_bug_in_going_on_with_a_sample_ends_one_call(
    tiny_packed: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its other samples are in the same step already."""
    engine = engine_of(tiny_packed)
    logged: list[int] = []
    engine._log_bug = lambda call, _: logged.append(call.call_id)
    decode_tokens = SampleRun.decode_tokens

    def broken(run: SampleRun, limit: int) -> list[DecodeToken]:
        if run.call.call_id == 2 and run.index == 1 and len(run.token_ids) == 3:
            raise ZeroDivisionError
        return decode_tokens(run, limit)

    monkeypatch.setattr(SampleRun, "decode_tokens", broken)
    engine.submit(sample_call([[3, 4]], n=3, max_tokens=6))
    engine.submit(sample_call([[3, 4]], call_id=3, max_tokens=6))
    events = list(finish(engine))
    assert [e.call_id for e in events if isinstance(e, CallFailed)] == logged == [2]
    assert [e.call_id for e in events if isinstance(e, CallFinished)] == [3]
    assert engine.free_pages == 400


def test_want_of_memory_in_a_step_is_put_down_to_no_call_until_calls_are_alone(
    tiny_packed: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = engine_of(tiny_packed)

    def full(*_: Any) -> Any:
        raise MemoryError

    monkeypatch.setattr(engine._model, "packed_states", full)
    for calls in (1, 2):
        for call_id in range(calls):
            engine.submit(score_call([([5, 6], [[7]])], call_id=call_id))
        failed = [e for e in finish(engine) if isinstance(e, CallFailed)]
        assert [e.fault.reason for e in failed] == [Reason.OUT_OF_MEMORY] * calls
        assert {e.shared_step for e in failed} == {calls > 1}
    assert not engine.is_sound


@pytest.mark.parametrize("lost", [False, True])
def test_a_lost_gpu_ends_the_worker_and_a_bug_does_not(
    tiny_packed: LoadedModel, monkeypatch: pytest.MonkeyPatch, lost: bool
) -> None:
    engine = engine_of(tiny_packed)
    engine._log_bug = lambda _call, _error: None

    def fail(*_: Any) -> Any:
        raise RuntimeError("Triton Error [CUDA]: an illegal memory access was encountered")

    monkeypatch.setattr(engine._model, "packed_states", fail)
    monkeypatch.setattr("scoring_service.engine.packed.engine.is_lost", lambda _device: lost)
    engine.submit(score_call([([5, 6], [[7]])]))
    assert [type(event) for event in finish(engine)] == [CallFailed]
    assert engine.is_sound != lost


def test_a_bug_in_a_step_leaves_open_whose_it_is_until_calls_are_alone(
    tiny_packed: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = engine_of(tiny_packed)
    engine._log_bug = lambda _call, _error: None
    model = engine._model
    states = model.packed_states
    steps: list[list[int]] = []

    def broken(ids_T: torch.Tensor, *rest: Any) -> Any:
        steps.append(ids_T.tolist())
        if 13 in steps[-1]:
            raise ZeroDivisionError
        return states(ids_T, *rest)

    pairs: list[Group] = [([5, 6, 7] * 20, [[6, 7] * 20])]
    expected = score(engine_of(tiny_packed), pairs)
    monkeypatch.setattr(model, "packed_states", broken)
    guilty = score_call([([13, 14], [[15]])], call_id=2)
    engine.submit(score_call(pairs))
    engine.submit(guilty)
    failed = {e.call_id: e.shared_step for e in finish(engine) if isinstance(e, CallFailed)}
    assert failed == {1: True, 2: True}
    steps.clear()
    engine.submit(score_call(pairs), alone=True)
    engine.submit(guilty, alone=True)
    engine.submit(sample_call([[3, 4]], call_id=3, max_tokens=5))
    events = list(finish(engine))
    failed = {e.call_id: e.shared_step for e in events if isinstance(e, CallFailed)}
    assert failed == {2: False}
    assert_equal(collect(e for e in events if not isinstance(e, CallFailed)), expected)
    assert {e.call_id for e in events if isinstance(e, CallFinished)} == {1, 3}
    assert not any({3, 5} <= set(step) or {13, 5} <= set(step) for step in steps)
    assert engine.free_pages == 400
