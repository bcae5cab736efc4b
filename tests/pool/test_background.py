"""Exceptions in what a pool does beside its calls: told at once, and no end of it."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import pytest
from structlog.testing import capture_logs

from scoring_service.engine.events import CallFailed, LoadProgress
from scoring_service.errors import Reason
from scoring_service.pool.background import supervised
from scoring_service.pool.calls.call_ends import CallEnds
from scoring_service.pool.streams.stream import CallStream
from scoring_service.pool.workers.worker import Worker
from tests.pool.scripted import Scripted, ScriptedExecutor, score_call


async def test_work_that_fails_is_told_and_begins_again_until_it_returns() -> None:
    outcomes: list[Exception | None] = [ValueError("a bug"), None, KeyError("never reached")]

    async def work() -> None:
        if (error := outcomes.pop(0)) is not None:
            raise error

    with capture_logs() as lines:
        await supervised(work, "the work", pause=0.0)
    assert [type(error) for error in outcomes] == [KeyError]
    (line,) = lines
    assert (line["event"], line["task"]) == ("background_task_failed", "the work")
    assert str(line["exc_info"]) == "a bug"


async def test_work_that_is_cancelled_ends() -> None:
    task = supervised(asyncio.Event().wait, "the work", pause=0.0)  # type: ignore[arg-type]
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_a_call_that_cannot_be_ended_leaves_the_others_their_deadlines(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    expire = CallEnds.expire

    def fails(calls: CallEnds, stream: CallStream) -> None:
        if stream.call.request_id.startswith("broken"):
            raise RuntimeError("a bug")
        expire(calls, stream)

    monkeypatch.setattr(CallEnds, "expire", fails)
    made = await Scripted(1).start()
    soon = time.monotonic() + 0.1
    # Which of them is looked at first is not said: one that fails lies on either side of most.
    async with (
        made.pool.run(score_call(1, [1], 5, deadline=soon, request_id="broken-1")),
        made.pool.run(score_call(2, [1], 5, deadline=soon, request_id="sound-1")) as first,
        made.pool.run(score_call(3, [1], 5, deadline=soon, request_id="sound-2")) as second,
        made.pool.run(score_call(4, [1], 5, deadline=soon, request_id="broken-2")),
    ):
        with capture_logs() as lines:
            for stream in (first, second):
                event = await stream.next(20.0)
                assert isinstance(event, CallFailed)
                assert event.fault.reason is Reason.DEADLINE_EXCEEDED
    assert {line["event"] for line in lines} == {"call_not_ended"}
    assert {line["request_id"] for line in lines} == {"broken-1", "broken-2"}


async def test_a_watch_that_fails_still_finds_the_worker_that_hangs(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    kill, bugs = Worker.kill, [RuntimeError("a bug")]

    def fails_once(worker: Worker, reason: str, **options: Any) -> None:
        if bugs:
            raise bugs.pop()
        kill(worker, reason, **options)

    monkeypatch.setattr(Worker, "kill", fails_once)
    made = await Scripted(1, heartbeat_timeout=0.1).start()
    silent = made.workers[0]
    async with asyncio.timeout(20):
        while not silent.killed:
            await made.pool.wait_changed()
    assert not bugs


async def test_a_worker_whose_start_meets_a_bug_is_started_again() -> None:
    bugs = [RuntimeError("a bug")]

    def fails_once(executor: ScriptedExecutor) -> None:
        executor.begins = LoadProgress("loading weights")
        if bugs:
            raise bugs.pop()

    made = await Scripted(1).start()
    made.prepare = fails_once
    made.workers[0].die("SIGKILL", from_outside=True)
    async with asyncio.timeout(20):
        while made.pool.workers[0].starts == 1 or not made.pool.takes_calls:
            await made.pool.wait_changed()
    assert not bugs
