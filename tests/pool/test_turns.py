"""Calls that wait for their turn: whose it is, which worker's, and what ends the wait."""

from __future__ import annotations

import asyncio
import time
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

from scoring_service.engine.events import CallFinished
from scoring_service.errors import Fault, Reason, ServiceError
from scoring_service.pool.streams.stream import UNREAD_LIMIT
from scoring_service.pool.workers.workload import Taken
from scoring_service.types import SampleCall
from tests.pool.scripted import INFO, Scripted, drain, fault, rows, sample_call, score_call, settled


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


async def test_urgent_calls_do_not_wait_for_the_window() -> None:
    made = await Scripted(1).start()
    async with (
        made.pool.run(score_call(1, [1], *[60] * 8)),
        made.pool.run(score_call(2, [1], 100)),
        made.pool.run(score_call(3, [2], 100, priority=5)),
    ):
        urgent = [c for c in made.workers[0].calls.values() if c.priority == 5]
        assert len(urgent) == 1


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


async def test_parts_of_a_call_that_samples_know_one_another() -> None:
    made = await Scripted(1).start()
    async with made.pool.run(sample_call(7, n=70, max_tokens=4)):
        parts = made.workers[0].calls.values()
        assert len(parts) == 3
        assert {part.part_of for part in parts if isinstance(part, SampleCall)} == {7}


async def test_a_call_that_expires_while_it_waits_never_reaches_a_worker(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    made = await Scripted(1).start()
    async with made.pool.run(score_call(1, [1], 120)) as running:
        deadline = time.monotonic() + 60.0
        async with made.pool.run(score_call(2, [1], 60, deadline=deadline)) as waiting:
            later = SimpleNamespace(monotonic=lambda: deadline + 1.0)
            monkeypatch.setattr("scoring_service.pool.calls.dispatch.time", later)
            (part,) = made.workers[0].calls
            made.workers[0].score(part)
            await settled()
            assert isinstance(drain(running)[-1], CallFinished)
            assert not made.workers[0].calls
            assert fault(drain(waiting)) is Reason.DEADLINE_EXCEEDED
    assert made.pool.queued_tokens == 0


async def test_a_call_whose_reader_stalls_ends_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """What its reader held lets others go on, and finds that it has expired as well."""
    made = await Scripted(1).start()
    deadline = time.monotonic() + 60.0
    async with made.pool.run(score_call(1, [1], 60, 60, 60, deadline=deadline)) as stream:
        made.workers[0].score(next(iter(made.workers[0].calls)), most_rows=3)
        await settled()
        assert stream.unread
        assert stream.waiting
        later = SimpleNamespace(monotonic=lambda: deadline + 1.0)
        monkeypatch.setattr("scoring_service.pool.calls.dispatch.time", later)
        made.pool._calls.ends.stalled(stream, Fault(Reason.READER_STALLED, "it took nothing"))
        assert fault(drain(stream)) is Reason.READER_STALLED
    assert made.pool.unread_bytes == 0


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
        made.pool.weights.owner.hold_back(replace(INFO, weight_version=2))
        made.workers[0].score(next(iter(made.workers[0].calls)))
        await settled()
        assert not throughput.pressed, "an update holds it back"
        made.pool.weights.owner.hold_back(None)
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


def test_calls_are_counted_while_others_come() -> None:
    """Metrics are read by a thread of their own: the loop may admit a call at any moment."""
    made = Scripted(1)
    streams: Any = made.pool._calls.streams

    class Stream:
        @property
        def queue_seconds(self) -> None:
            if len(streams) < 9:
                streams[len(streams)] = Stream()

    streams[0] = Stream()
    assert made.pool.waiting_calls == 1
    assert made.pool.running_calls == 0
    assert len(streams) > 1
