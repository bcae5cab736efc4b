"""Every request to forget cached prompts is told of its own flush, not of one before it."""

from __future__ import annotations

import asyncio

from scoring_service.engine.events import CacheFlushed
from tests.pool.scripted import Scripted, settled


async def test_each_flush_has_its_own_answer() -> None:
    """What was cached between the two is still there when the first is answered."""
    made = await Scripted(1).start()
    cache, workers = made.pool.cache, made.pool.workers
    first = asyncio.create_task(cache.flush(workers))
    second = asyncio.create_task(cache.flush(workers))
    await settled()
    made.workers[0].on_event(CacheFlushed(5))
    await settled()
    assert first.done()
    assert not second.done()
    made.workers[0].on_event(CacheFlushed(2))
    assert [await first, await second] == [[5], [2]]


async def test_a_flush_whose_caller_left_still_has_its_turn() -> None:
    made = await Scripted(1).start()
    cache, workers = made.pool.cache, made.pool.workers
    left = asyncio.create_task(cache.flush(workers))
    second = asyncio.create_task(cache.flush(workers))
    await settled()
    left.cancel()
    await settled()
    made.workers[0].on_event(CacheFlushed(5))
    await settled()
    assert not second.done()
    made.workers[0].on_event(CacheFlushed(2))
    assert await second == [2]


async def test_a_worker_that_dies_holds_nothing_any_more() -> None:
    made = await Scripted(1).start()
    flushes = [asyncio.create_task(made.pool.cache.flush(made.pool.workers)) for _ in range(2)]
    await settled()
    made.workers[0].die()
    assert [await flush for flush in flushes] == [[0], [0]]
