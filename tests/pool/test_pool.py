"""Workers that die, hang, crash and disagree; calls that wait, move and expire."""

from __future__ import annotations

import asyncio
import errno
import os
import time
from dataclasses import replace

import pytest
from structlog.testing import capture_logs

from scoring_service.engine.events import (
    CallEvent,
    CallFailed,
    CallFinished,
    Heartbeat,
    LoadFailed,
    LoadProgress,
    SampleSlice,
    ScoreSlice,
    WorkerStats,
)
from scoring_service.errors import Fault, Reason, ServiceError
from scoring_service.peak_memory import part_credit
from scoring_service.pool.streams.stream import UNREAD_LIMIT, CallStream
from scoring_service.pool.workers.readiness import PoolState
from scoring_service.pool.workers.window import MAX_REPLY_BYTES
from scoring_service.pool.workers.workload import Taken
from scoring_service.telemetry.metrics import Metrics
from scoring_service.types import RowWants, SampleCall
from tests.pool.scripted import (
    INFO,
    Scripted,
    ScriptedExecutor,
    sample_call,
    score_call,
    settled,
    until,
)


def drain(stream: CallStream) -> list[CallEvent]:
    events = []
    while (event := stream.next_nowait()) is not None:
        events.append(event)
    return events


def rows(events: list[CallEvent]) -> list[tuple[int, float]]:
    return [
        (event.completion_index, float(event.block.logprobs[0]))
        for event in events
        if isinstance(event, ScoreSlice)
    ]


def fault(events: list[CallEvent]) -> Reason:
    (failed,) = [event for event in events if isinstance(event, CallFailed)]
    assert events[-1] is failed
    return failed.fault.reason


async def test_what_a_dead_worker_had_not_answered_goes_to_another_once() -> None:
    made = await Scripted(2).start()
    async with made.pool.run(score_call(1, [1], 5, 4)) as stream:
        (first,) = made.busy
        (part,) = made.workers[first].calls
        made.workers[first].score(part, most_rows=7)
        await settled()
        made.workers[first].die("SIGKILL", from_outside=True)
        await settled()
        (second,) = made.busy
        assert second != first
        (part,) = made.workers[second].calls
        assert made.workers[second].score(part) == 2, "rows that were sent are not computed again"
        await settled()
        events = drain(stream)
    assert rows(events) == [(0, i) for i in range(5)] + [(1, i) for i in range(4)]
    assert isinstance(events[-1], CallFinished)
    usage = events[-1].usage
    assert (usage.prompt_tokens, usage.completion_tokens, usage.head_rows) == (1, 9, 8)
    assert sum(isinstance(event, CallFinished) for event in events) == 1


async def test_a_part_knows_its_worker_and_a_call_whether_it_was_begun() -> None:
    made = await Scripted(2).start()
    pool = made.pool
    async with pool.run(score_call(1, [1], 5)) as stream:
        assert (pool.waiting_calls, pool.running_calls) == (1, 0)
        (first,) = made.busy
        (part,) = stream.running.values()
        assert part.worker == first
        made.workers[first].score(part.part_id, most_rows=2)
        await settled()
        assert (pool.waiting_calls, pool.running_calls) == (0, 1)
        made.workers[first].die("SIGKILL", from_outside=True)
        await settled()
        assert part.worker is None
        (again,) = stream.running.values()
        assert again.worker == 1 - first
        assert (pool.waiting_calls, pool.running_calls) == (0, 1)
        made.workers[1 - first].score(again.part_id)
        await settled()
        assert again.worker is None
        assert (pool.waiting_calls, pool.running_calls) == (0, 0)
    async with pool.run(score_call(2, [1], 5)):
        assert pool.waiting_calls == 1
    assert (pool.waiting_calls, pool.running_calls) == (0, 0)


async def test_a_bug_in_company_costs_only_the_call_that_meets_it_alone() -> None:
    made = await Scripted(1).start()
    worker = made.workers[0]
    bug = Fault(Reason.INTERNAL_ERROR, "a bug in the server")
    async with (
        made.pool.run(score_call(1, [1], 5)) as innocent,
        made.pool.run(score_call(2, [1], 5)) as guilty,
    ):
        first, second = worker.calls
        worker.score(first, most_rows=3)
        for part in (first, second):
            del worker.calls[part]
            worker.on_event(CallFailed(part, bug, shared_step=True))
        await settled()
        again, other = worker.calls
        assert worker.alone == {again, other}
        assert worker.score(again) == 2, "rows that were sent are not computed again"
        worker.on_event(CallFailed(other, bug))
        await settled()
        events = drain(innocent)
        assert rows(events) == [(0, i) for i in range(5)]
        assert isinstance(events[-1], CallFinished)
        assert fault(drain(guilty)) is Reason.INTERNAL_ERROR
    assert made.pool.queued_tokens == 0
    assert all(w.work.all == Taken() for w in made.pool.workers)


async def test_the_second_death_ends_the_call() -> None:
    made = await Scripted(3).start()
    async with made.pool.run(score_call(1, [1], 5)) as stream:
        for _ in range(2):
            (index,) = made.busy
            made.workers[index].die("SIGKILL", from_outside=True)
            await settled()
        events = drain(stream)
    assert fault(events) is Reason.WORKER_DIED
    assert events[-1].fault.retry_after is not None  # type: ignore[union-attr]


async def test_without_another_worker_the_call_ends_and_one_that_waits_stays() -> None:
    made = await Scripted(1).start()
    large = score_call(1, [1], *[60] * 4)
    async with made.pool.run(large) as first, made.pool.run(score_call(2, [1], 60)) as second:
        assert len(made.workers[0].calls) == 2, "more than its window does not go out"
        made.workers[0].die("SIGKILL", from_outside=True)
        await settled()
        assert fault(drain(first)) is Reason.WORKER_DIED
        assert drain(second) == []
        assert made.pool.state is PoolState.LOADING
        await asyncio.sleep(0.05)
        assert made.pool.state is PoolState.READY
        (part,) = made.workers[0].calls
        made.workers[0].score(part)
        await settled()
        assert isinstance(drain(second)[-1], CallFinished)


async def test_a_sample_goes_on_where_it_was() -> None:
    made = await Scripted(2).start()
    async with made.pool.run(sample_call(1, n=3, max_tokens=4)) as stream:
        (first,) = made.busy
        (part,) = made.workers[first].calls
        made.workers[first].draw(part, most_tokens=6)
        await settled()
        made.workers[first].die("SIGKILL", from_outside=True)
        await settled()
        (second,) = made.busy
        (part,) = made.workers[second].calls
        assert made.workers[second].draw(part) == 6
        await settled()
        events = drain(stream)
    drawn = [
        (e.sample_index, e.start, e.token_ids.tolist())
        for e in events
        if isinstance(e, SampleSlice)
    ]
    assert drawn == [(index, place, [place]) for index in range(3) for place in range(4)]
    assert isinstance(events[-1], CallFinished)
    assert events[-1].usage.sampled_tokens == 6, "those of the dead worker, which reported none"


async def test_a_worker_that_goes_silent_is_killed_and_its_work_moves() -> None:
    made = await Scripted(2, heartbeat_timeout=0.5).start()
    async with made.pool.run(score_call(1, [1], 5)) as stream:
        (hung,) = made.busy
        other = 1 - hung
        silent = made.workers[hung]
        deadline = time.monotonic() + 20
        while not silent.killed and time.monotonic() < deadline:
            beat = Heartbeat(0.0, WorkerStats())
            for worker in made.workers:
                if worker is not silent:
                    worker.on_event(beat)
            await asyncio.sleep(0.1)
        assert silent.killed
        await settled()
        assert made.busy == [other]
        (part,) = made.workers[other].calls
        made.workers[other].score(part)
        await settled()
        assert rows(drain(stream)) == [(0, i) for i in range(5)]
        assert len(made.starts[other]) == 1


async def test_a_worker_that_a_kill_does_not_end_loses_its_work_all_the_same() -> None:
    """As one that waits in a driver: it dies once that answers, and only then is there a next."""
    made = Scripted(2, step_timeout=100.0, heartbeat_timeout=0.2)
    made.prepare = lambda executor: setattr(executor, "kill", lambda: None)
    await made.start()
    pool, hang = made.pool, Heartbeat(101.0, WorkerStats())
    async with pool.run(score_call(1, [1], 5)) as first:
        (hung,) = made.busy
        stuck, other = made.workers[hung], made.workers[1 - hung]
        stuck.score(next(iter(stuck.calls)), most_rows=2)
        stuck.on_event(hang)
        await settled()
        assert not pool.workers[hung].is_ready
        async with pool.run(score_call(2, [1], 3)) as second:
            assert len(other.calls) == 2, "what moved, and what is new"
            late = next(iter(stuck.calls))
            for part in list(other.calls):
                other.score(part)
            stuck.score(late)  # it was not quite dead
            await settled()
            assert rows(drain(first)) == [(0, i) for i in range(5)]
            assert rows(drain(second)) == [(0, i) for i in range(3)]
    with capture_logs() as lines:
        for _ in range(20):
            stuck.on_event(hang)
            other.on_event(Heartbeat(0.0, WorkerStats()))
            await asyncio.sleep(0.02)
        assert len(made.starts[hung]) == 1, "two of them do not fit on one device"
        stuck.die("SIGKILL", from_outside=True)
        async with asyncio.timeout(10):
            while not pool.workers[hung].is_ready:
                await pool.wait_changed()
    assert len(made.starts[hung]) == 2
    assert pool.workers[hung].starts == 2
    events = [line["event"] for line in lines if line.get("worker") == hung]
    assert events[:2] == ["worker_not_gone", "worker_died"]
    assert "worker_hangs" not in events


async def test_a_pool_whose_only_worker_a_kill_does_not_end_takes_no_calls() -> None:
    made = Scripted(1, step_timeout=100.0)
    made.prepare = lambda executor: setattr(executor, "kill", lambda: None)
    await made.start()
    async with made.pool.run(score_call(1, [1], 5)) as stream:
        made.workers[0].on_event(Heartbeat(101.0, WorkerStats()))
        await settled()
        assert fault(drain(stream)) is Reason.WORKER_DIED
    assert made.pool.state is PoolState.LOADING
    assert "killed: it hung" in made.pool.stage


async def test_a_dead_worker_holds_no_pages_and_keeps_what_it_counted() -> None:
    metrics = Metrics()
    made = await Scripted(2, metrics, first_backoff=30.0).start()
    metrics.watch(made.pool)
    for worker in made.workers:
        worker.on_event(Heartbeat(0.0, WorkerStats(steps=10, pages=100, free_pages=3)))
    await settled()

    def shown(name: str, worker: str) -> float | None:
        return metrics.registry.get_sample_value(name, {"worker": worker})

    pages = "scoring_kv_cache_usage_perc"
    assert shown(pages, "0") == shown(pages, "1") == pytest.approx(0.97)
    made.workers[0].die("SIGSEGV")
    await settled()
    assert shown("scoring_worker_ready", "0") == 0.0
    assert shown(pages, "0") == 0.0
    assert shown(pages, "1") == pytest.approx(0.97)
    assert shown("scoring_steps_total", "0") == 10.0


async def test_a_step_that_does_not_end_is_a_hang_though_the_heart_beats() -> None:
    made = await Scripted(2, step_timeout=100.0).start()
    made.workers[0].on_event(Heartbeat(99.0, WorkerStats()))
    await settled()
    assert not made.workers[0].killed
    made.workers[0].on_event(Heartbeat(101.0, WorkerStats()))
    await settled()
    assert made.starts[0][0].killed


async def test_a_crash_loop_is_told_with_its_reason_and_ends_when_a_worker_answers_again() -> None:
    made = await Scripted(1, crash_limit=3, longest_backoff=0.3).start()
    for _ in range(3):
        made.workers[0].die("SIGSEGV")
        await asyncio.sleep(0.1)
    assert made.pool.state is PoolState.CRASH_LOOP
    assert "died 3 times in a row, last: SIGSEGV" in made.pool.stage
    with pytest.raises(ServiceError) as refused:
        _ = made.pool.info
    assert refused.value.fault.reason is Reason.CRASH_LOOP
    await asyncio.sleep(0.5)
    assert made.pool.state is PoolState.READY


async def test_calls_that_wait_end_with_a_crash_loop_and_its_reason() -> None:
    made = await Scripted(1, crash_limit=3, longest_backoff=30.0).start()
    async with (
        made.pool.run(score_call(1, [1] * 200, 60)) as running,
        made.pool.run(score_call(2, [1] * 200, 60)) as waiting,
    ):
        made.prepare = lambda executor: setattr(executor, "ready_at_once", False)
        for death in range(1, 4):
            assert made.pool.state is not PoolState.CRASH_LOOP
            made.workers[0].die("SIGSEGV")
            await asyncio.sleep(0.1)
            if death < 3:
                assert waiting.next_nowait() is None, "the next worker may answer it"
        assert fault(drain(running)) is Reason.WORKER_DIED
        (failed,) = drain(waiting)
        assert isinstance(failed, CallFailed)
        assert failed.fault.reason is Reason.CRASH_LOOP
        assert "died 3 times in a row, last: SIGSEGV" in failed.fault.message
        assert failed.fault.retry_after == pytest.approx(30.0, abs=10.0)
        assert made.pool.queued_tokens == 0


async def test_a_drain_waits_for_no_workers_that_do_not_answer_any_more() -> None:
    made = await Scripted(1, crash_limit=1, longest_backoff=30.0).start()
    async with (
        made.pool.run(score_call(1, [1] * 200, 60)) as running,
        made.pool.run(score_call(2, [1] * 200, 60)) as waiting,
    ):
        draining = asyncio.create_task(made.pool.drain(3600.0))
        await settled()
        assert not waiting.ended
        made.workers[0].die("SIGSEGV")
        await settled()
        assert fault(drain(running)) is Reason.WORKER_DIED
        assert fault(drain(waiting)) is Reason.DRAINING
    async with asyncio.timeout(10):
        await draining


async def test_calls_that_wait_end_where_every_worker_turns_out_not_to_load() -> None:
    made = await Scripted(1).start()
    async with (
        made.pool.run(score_call(1, [1] * 200, 60)) as running,
        made.pool.run(score_call(2, [1] * 200, 60)) as waiting,
    ):
        made.prepare = lambda executor: setattr(executor, "ready_at_once", False)
        made.workers[0].die("SIGKILL", from_outside=True)
        await asyncio.sleep(0.1)
        assert fault(drain(running)) is Reason.WORKER_DIED
        assert waiting.next_nowait() is None
        made.workers[0].on_event(LoadFailed("the files are gone"))
        await settled()
        assert made.pool.state is PoolState.FAILED
        assert fault(drain(waiting)) is Reason.DRAINING


async def test_a_worker_that_hangs_again_and_again_while_it_loads_is_a_crash_loop() -> None:
    """The pool kills it by itself, by the signal that an operator would use."""
    made = await Scripted(1, crash_limit=3, heartbeat_timeout=0.2, longest_backoff=30.0).start()

    def hang(executor: ScriptedExecutor) -> None:
        executor.ready_at_once = False
        executor.begins = LoadProgress("loading weights")

    made.prepare = hang
    made.workers[0].die("SIGKILL", from_outside=True)
    for _ in range(200):
        if made.pool.state is PoolState.CRASH_LOOP:
            break
        await asyncio.sleep(0.1)
    assert made.pool.state is PoolState.CRASH_LOOP
    assert len(made.starts[0]) == 4
    assert all(executor.killed for executor in made.starts[0][1:])


async def test_a_worker_that_hangs_again_and_again_once_it_answers_is_a_crash_loop() -> None:
    made = await Scripted(1, crash_limit=3, step_timeout=100.0, longest_backoff=30.0).start()
    for death in range(1, 4):
        made.workers[0].on_event(Heartbeat(101.0, WorkerStats()))
        await settled()
        assert made.starts[0][-1].killed
        assert made.pool.workers[0].policy.crashes == death
        if death < 3:
            async with asyncio.timeout(10):
                while not made.pool.takes_calls:
                    await made.pool.wait_changed()
    assert made.pool.state is PoolState.CRASH_LOOP
    assert "died 3 times in a row, last: killed: it hung" in made.pool.stage
    assert made.pool.workers[0].seconds_to_ready > 20.0, "it is tried rarely from now on"


async def test_kills_of_a_worker_that_answers_are_no_crash_loop() -> None:
    made = await Scripted(1, crash_limit=3).start()
    for _ in range(8):
        made.workers[0].die("SIGKILL", from_outside=True)
        await asyncio.sleep(0.05)
        assert made.pool.state is PoolState.READY
    assert len(made.starts[0]) == 9


async def test_kills_of_a_worker_that_loads_are_no_crash_loop() -> None:
    made = await Scripted(1, crash_limit=3).start()
    made.prepare = lambda executor: setattr(executor, "ready_at_once", False)
    for _ in range(5):
        made.workers[0].die("SIGKILL", from_outside=True)
        await asyncio.sleep(0.02)
        assert made.pool.state is PoolState.LOADING
    made.prepare = lambda _executor: None
    made.workers[0].die("SIGKILL", from_outside=True)
    await asyncio.sleep(0.02)
    assert made.pool.state is PoolState.READY


async def test_a_worker_that_cannot_be_started_again_is_tried_again() -> None:
    made = await Scripted(1).start()
    refusals = iter([OSError(errno.EAGAIN, os.strerror(errno.EAGAIN)), OSError("no more files")])
    made.prepare = lambda executor: setattr(executor, "refusal", next(refusals, None))
    async with made.pool.run(score_call(1, [1], 5)) as stream:
        made.workers[0].die("SIGKILL", from_outside=True)
        await settled()
        assert fault(drain(stream)) is Reason.WORKER_DIED
    await asyncio.sleep(0.02)
    assert "could not be started (Resource temporarily unavailable)" in made.pool.stage
    await asyncio.sleep(0.2)
    assert len(made.starts[0]) == 4
    assert made.pool.state is PoolState.READY


async def test_workers_that_cannot_be_started_at_all_end_the_pool() -> None:
    made = Scripted(2)
    made.prepare = lambda executor: setattr(executor, "refusal", OSError("no more files"))
    await made.start()
    assert made.pool.state is PoolState.FAILED
    assert made.pool.failure == "the worker could not be started (no more files)"
    await made.pool.drain(patience=1)


async def test_a_worker_with_other_weights_takes_no_part() -> None:
    made = Scripted(2)
    others = iter([INFO, replace(INFO, weights_digest="other")])
    made.prepare = lambda executor: setattr(executor, "info", next(others, INFO))
    await made.start()
    assert made.starts[1][0].killed
    await asyncio.sleep(0.1)
    assert made.workers[1] is not made.starts[1][0]
    assert made.pool.state is PoolState.READY
    assert made.pool.info.weights_digest == "d"


async def test_a_prompt_goes_to_the_worker_that_has_it_unless_that_one_has_too_much_to_do() -> None:
    made = await Scripted(2).start()
    prompt = list(range(40))
    homes = []
    for call_id in range(1, 5):
        async with made.pool.run(score_call(call_id, prompt, 3)):
            homes += made.busy
            for worker in made.workers:
                for part in list(worker.calls):
                    worker.score(part)
            await settled()
    assert len(set(homes)) == 1
    async with (
        made.pool.run(score_call(10, [99], 90)),
        made.pool.run(score_call(11, [98], 30)),
        made.pool.run(score_call(12, prompt, 3)),
    ):
        loads = [sum(call.tokens for call in worker.calls.values()) for worker in made.workers]
        assert sorted(loads) == [74, 91], "43 tokens wait less beside 31 than behind 91"


async def test_a_call_of_many_parts_is_shared_by_the_workers() -> None:
    made = await Scripted(2).start()
    async with made.pool.run(score_call(1, [1], *[60] * 4)) as stream:
        assert made.busy == [0, 1]
        while made.busy:
            for worker in made.workers:
                for part in list(worker.calls):
                    worker.score(part)
            await settled()
        events = drain(stream)
    assert sorted(rows(events)) == [(c, i) for c in range(4) for i in range(60)]
    assert events[-1].usage.completion_tokens == 240  # type: ignore[union-attr]
    assert events[-1].usage.prompt_tokens == 1  # type: ignore[union-attr]


async def test_a_call_that_expires_while_it_waits_never_reaches_a_worker() -> None:
    made = await Scripted(1).start()
    async with made.pool.run(score_call(1, [1], 120)) as running:
        late = score_call(2, [1], 60, deadline=time.monotonic() + 0.05)
        async with made.pool.run(late) as waiting:
            await asyncio.sleep(0.1)
            (part,) = made.workers[0].calls
            made.workers[0].score(part)
            await settled()
            assert isinstance(drain(running)[-1], CallFinished)
            assert not made.workers[0].calls
            assert fault(drain(waiting)) is Reason.DEADLINE_EXCEEDED
    assert made.pool.queued_tokens == 0


async def test_calls_of_one_token_do_not_have_others_refused_for_their_deadline() -> None:
    made = await Scripted(1, max_queue_tokens=10**6).start()
    for call_id in range(1, 4):
        async with made.pool.run(score_call(call_id, [1], 1)):
            await asyncio.sleep(0.1)
            (part,) = made.workers[0].calls
            made.workers[0].score(part)
            await settled()
    soon = time.monotonic() + 2.0
    async with (
        made.pool.run(score_call(10, [1], *[60] * 100)),
        made.pool.run(score_call(11, [1], 60, deadline=soon)) as admitted,
    ):
        assert not admitted.ended


async def test_only_what_waits_for_workers_that_are_busy_is_pressure() -> None:
    made = await Scripted(2, first_backoff=0.01).start()
    throughput = made.pool._calls.admission.throughput
    async with made.pool.run(score_call(1, [1], *[60] * 4)):
        assert not throughput.pressed, "workers take that at once"
    async with made.pool.run(score_call(2, [1], *[60] * 12)) as stream:
        assert throughput.pressed
        made.pool.hold_back(replace(INFO, weight_version=2))
        made.workers[0].score(next(iter(made.workers[0].calls)))
        await settled()
        assert not throughput.pressed, "an update holds it back"
        made.pool.hold_back(None)
        assert throughput.pressed
        stream.unread = UNREAD_LIMIT
        made.pool._calls.dispatcher.answered("", UNREAD_LIMIT)
        made.workers[0].score(next(iter(made.workers[0].calls)))
        await settled()
        assert not throughput.pressed, "its reader holds it back"
        stream.taken(stream.discard())
        made.pool._calls.stream_read(stream, UNREAD_LIMIT)
        assert throughput.pressed
        for worker in made.workers:
            worker.die("SIGKILL", from_outside=True)
        await settled()
        assert not throughput.pressed, "there is no worker"
    assert not throughput.pressed


async def test_leaving_a_call_frees_its_queue_and_its_workers() -> None:
    made = await Scripted(2).start()
    async with made.pool.run(score_call(1, [1], *[60] * 8)):
        parts = {part for worker in made.workers for part in worker.calls}
        assert made.pool.queued_tokens > 0
    assert {part for worker in made.workers for part in worker.cancelled} == parts
    assert made.pool.queued_tokens == 0
    assert all(w.work.all == Taken() for w in made.pool.workers)


async def test_a_reader_that_takes_nothing_holds_its_own_call_back_and_loses_it() -> None:
    made = await Scripted(1, reader_timeout=0.2).start()
    async with (
        made.pool.run(score_call(1, [1], *[60] * 8)) as slow,
        made.pool.run(score_call(2, [1], 60)) as quick,
    ):
        slow.unread = UNREAD_LIMIT
        made.pool._calls.dispatcher.answered("", UNREAD_LIMIT)
        for _ in range(10):
            for part in list(made.workers[0].calls):
                made.workers[0].score(part)
            await settled()
        assert isinstance(drain(quick)[-1], CallFinished)
        assert slow.waiting, "no further part is computed"
        await until(lambda: slow.ended)
        assert fault(drain(slow)) is Reason.READER_STALLED
        assert slow.unread == 0


async def test_a_part_has_its_credit_however_little_it_answers() -> None:
    """The engine counts rows before it has them, one a completion too many: it must not run out."""
    made = await Scripted(1).start()
    async with made.pool.run(score_call(1, [1], 3)) as stream:
        (part,) = made.workers[0].calls
        assert made.workers[0].credits[part] == 4 << 20
        made.workers[0].score(part)
        await settled()
        assert isinstance(drain(stream)[-1], CallFinished)


async def test_credit_grows_with_the_steps_of_a_device() -> None:
    """A GPU's 8,192 tokens: with 4 MiB, lists of 1,024 left it in steps of 768."""

    def prepare(executor: ScriptedExecutor) -> None:
        executor.info = replace(INFO, max_batch_tokens=8192, max_sequence_tokens=100_000)

    made = Scripted(1, max_queue_tokens=1_000_000)
    made.prepare = prepare
    await made.start()
    lists = replace(score_call(1, [1], *[8000] * 12), wants=RowWants(top_k=1024))
    async with made.pool.run(lists):
        worker, work = made.workers[0], made.pool.workers[0].work
        assert list(worker.credits.values()) == [32 << 20] * 2, "one is read, the next computed"
        assert work.all.reply_bytes == sum(worker.credits.values()) <= MAX_REPLY_BYTES
        worker.row_bytes = 31 << 20
        first = next(iter(worker.calls))
        worker.score(first, most_rows=1)
        await settled()
        assert work.all.reply_bytes == 64 << 20
        worker.score(first, most_rows=1)
        await settled()
        assert work.all.reply_bytes == 32 << 20, "its reader holds the part back"


async def test_parts_of_a_call_that_samples_know_one_another() -> None:
    made = await Scripted(1).start()
    async with made.pool.run(sample_call(7, n=70, max_tokens=4)):
        parts = made.workers[0].calls.values()
        assert len(parts) == 3
        assert {part.part_of for part in parts if isinstance(part, SampleCall)} == {7}


async def test_a_part_whose_reader_holds_it_back_leaves_its_place_to_others() -> None:
    made = await Scripted(1).start()
    worker = made.workers[0]
    size = worker.row_bytes = part_credit(INFO.max_batch_tokens) - 1
    large = replace(score_call(1, [1], 120), wants=RowWants(top_k=10_000))
    async with made.pool.run(large) as stalled, made.pool.run(score_call(2, [1], 60)) as other:
        (first,) = worker.calls
        worker.score(first, most_rows=1)
        await settled()
        assert len(worker.calls) == 1, "its credit is not used up yet"
        worker.score(first, most_rows=1)
        await settled()
        assert len(worker.calls) == 2
        (_, second) = worker.calls
        worker.row_bytes = 4
        worker.score(second)
        await settled()
        assert isinstance(drain(other)[-1], CallFinished)
        assert made.pool.unread_bytes == 2 * size + 240
        stalled.taken(2 * size)
        assert made.pool.unread_bytes == 240
        assert made.pool.workers[0].work.all.load == 121
    assert made.pool.workers[0].work.all.load == 0


async def test_urgent_calls_do_not_wait_for_the_window() -> None:
    made = await Scripted(1).start()
    async with (
        made.pool.run(score_call(1, [1], *[60] * 8)),
        made.pool.run(score_call(2, [1], 100)),
        made.pool.run(score_call(3, [2], 100, priority=5)),
    ):
        urgent = [c for c in made.workers[0].calls.values() if c.priority == 5]
        assert len(urgent) == 1


async def test_a_drain_lets_calls_end_and_refuses_new_ones() -> None:
    made = await Scripted(1).start()
    async with made.pool.run(score_call(1, [1], 5)) as stream:
        draining = asyncio.create_task(made.pool.drain(10.0))
        await settled()
        with pytest.raises(ServiceError) as refused:
            async with made.pool.run(score_call(2, [1], 5)):
                pass
        assert refused.value.fault.reason is Reason.DRAINING
        (part,) = made.workers[0].calls
        made.workers[0].score(part)
        await settled()
        assert isinstance(drain(stream)[-1], CallFinished)
    await draining


async def test_clients_take_turns() -> None:
    made = await Scripted(1, max_queue_tokens=10**6).start()
    order: list[str] = []
    async with (
        made.pool.run(score_call(1, [1], *[60] * 40), "heavy"),
        made.pool.run(score_call(2, [1], *[60] * 6), "light") as light,
    ):
        while not light.ended:
            part = next(iter(made.workers[0].calls))
            order.append(made.pool.workers[0].parts[part].stream.client)
            made.workers[0].score(part)
            await settled()
    assert order.count("heavy") <= order.count("light") + 4, order
