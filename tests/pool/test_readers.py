"""Readers that take nothing: what waits for them is bounded in time, and holds nobody else up."""

from __future__ import annotations

import asyncio

from scoring_service.engine.events import CallFailed, CallFinished
from scoring_service.errors import Reason
from scoring_service.pool.admission.reply_memory import MAX_BYTES
from tests.pool.scripted import Scripted, score_call, settled, until


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
    made = await Scripted(1, reader_timeout=0.1).start()
    async with made.pool.run(score_call(1, [1], 5)) as stream:
        (part,) = made.workers[0].calls
        made.workers[0].score(part)
        await settled()
        assert stream.ended
        assert made.pool.unread_bytes == 20
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
