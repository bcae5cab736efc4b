"""Samples that are being drawn when the weights change: those alone, and each once."""

from __future__ import annotations

import time
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from scoring_service.engine.events import CallFailed, CallFinished, ItemFailed
from scoring_service.errors import Reason
from scoring_service.pool.weights.status import RunningSamples
from scoring_service.types import SampleCall
from tests.pool.scripted import INFO, Scripted, drain, sample_call, settled


def long_prompt(call: SampleCall, tokens: int) -> SampleCall:
    (task,) = call.prompts
    return replace(call, prompts=(replace(task, prompt_ids=np.zeros(tokens, dtype=np.int32)),))


async def test_samples_that_begin_while_others_are_aborted_are_left_alone() -> None:
    """One that ends makes room for what waits, which is drawn from the new weights."""
    made = await Scripted(2).start()
    pool = made.pool
    async with (
        pool.run(sample_call(1, n=10, max_tokens=4)) as first,
        pool.run(sample_call(2, n=10, max_tokens=4)) as second,
        pool.run(long_prompt(sample_call(3, n=1, max_tokens=4), 120)) as large,
        pool.run(sample_call(4, n=1, max_tokens=4)) as small,
    ):
        assert [len(worker.calls) for worker in made.workers] == [1, 1]
        pool.weights.owner.change_samples(RunningSamples.ABORT, INFO, "committed")
        for begun in (first, second):
            events = drain(begun)
            assert sum(isinstance(event, ItemFailed) for event in events) == 10
            assert isinstance(events[-1], CallFinished)
        for waited in (large, small):
            assert waited.running
            assert drain(waited) == []


@pytest.mark.timeout(20)
async def test_a_call_that_expires_while_samples_are_changed_is_over(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Its part is among those to change, and it has others that wait."""
    made = await Scripted(1).start()
    worker = made.workers[0]
    deadline = time.monotonic() + 60.0
    late = replace(sample_call(2, n=160, max_tokens=4), deadline=deadline)
    async with (
        made.pool.run(sample_call(1, n=1, max_tokens=4)) as answered,
        made.pool.run(late) as expired,
    ):
        worker.finish = lambda _call_id: None  # type: ignore[method-assign]
        worker.draw(next(iter(worker.calls)))
        await settled()
        assert expired.running
        assert expired.waiting
        later = SimpleNamespace(monotonic=lambda: deadline + 1.0)
        monkeypatch.setattr("scoring_service.pool.calls.dispatch.time", later)
        made.pool.weights.owner.change_samples(RunningSamples.CONTINUE, INFO, "committed")
        assert isinstance(drain(answered)[-1], CallFinished)
        (failed,) = drain(expired)
        assert isinstance(failed, CallFailed)
        assert failed.fault.reason is Reason.DEADLINE_EXCEEDED
        assert not expired.waiting
        assert not expired.running
    assert made.pool.queued_tokens == 0
    assert made.pool.weights.current.uses == 0
