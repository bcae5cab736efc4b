"""Readers that take nothing: what waits for them is bounded, and holds nobody else up."""

from __future__ import annotations

import asyncio
from dataclasses import replace

from scoring_service.engine.events import CallFailed, CallFinished
from scoring_service.errors import Reason
from scoring_service.peak_memory import part_credit
from scoring_service.pool.admission.reply_memory import MAX_BYTES
from scoring_service.pool.streams.stream import UNREAD_LIMIT
from scoring_service.pool.workers.window import MAX_REPLY_BYTES
from scoring_service.types import RowWants
from tests.pool.scripted import (
    INFO,
    Scripted,
    ScriptedExecutor,
    drain,
    fault,
    score_call,
    settled,
    until,
)


async def test_a_call_that_others_results_held_back_goes_on_once_those_are_read() -> None:
    """However little its own client reads, since that has little waiting."""
    made = await Scripted(1).start()
    dispatcher = made.pool._calls.dispatcher
    dispatcher.answered("slow", MAX_BYTES)
    dispatcher.answered("client", 1000)
    async with made.pool.run(score_call(1, [1], 5), client="client"):
        assert not made.workers[0].calls
        dispatcher.read("slow", MAX_BYTES)
        assert len(made.workers[0].calls) == 1


async def test_results_of_a_call_that_is_computed_do_not_wait_for_ever() -> None:
    made = await Scripted(1, reader_timeout=60.0).start()
    async with made.pool.run(score_call(1, [1], 5)) as stream:
        (part,) = made.workers[0].calls
        made.workers[0].score(part)
        await settled()
        assert stream.ended
        assert made.pool.unread_bytes == 20
        stream.last_read -= 61.0
        await until(lambda: made.pool.unread_bytes == 0)
        last = stream.next_nowait()
        assert isinstance(last, CallFailed)
        assert last.fault.reason is Reason.READER_STALLED
        assert stream.next_nowait() is None


async def test_a_reader_that_took_all_results_may_be_late_for_the_end() -> None:
    made = await Scripted(1, reader_timeout=0.1).start()
    async with made.pool.run(score_call(1, [1], 5)) as stream:
        (part,) = made.workers[0].calls
        made.workers[0].score(part)
        await settled()
        stream.taken(20)
        await asyncio.sleep(0.3)
        while not isinstance(last := stream.next_nowait(), CallFinished):
            assert last is not None


async def test_a_reader_that_takes_nothing_holds_its_own_call_back_and_loses_it() -> None:
    made = await Scripted(1, reader_timeout=60.0).start()
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
        slow.last_read -= 61.0
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
