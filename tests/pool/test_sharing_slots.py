"""Calls that want more samples than a worker draws at once hold up none that want few or none."""

from __future__ import annotations

from dataclasses import replace

import pytest

from scoring_service.engine.machine.page_budget import MAX_SAMPLES
from scoring_service.models import tiny_model_path
from scoring_service.pool.pool import WorkerPool
from scoring_service.pool.settings import PoolSettings
from scoring_service.pool.workers.local import LocalExecutor
from scoring_service.pool.workers.workload import Taken
from scoring_service.types import Call, EngineConfig, SampleCall
from tests.pool.scripted import INFO, Scripted, ScriptedExecutor, sample_call, score_call, settled

LARGE = sample_call(1, n=2 * MAX_SAMPLES, max_tokens=10)
"""Twice as many samples as a worker draws at once."""


async def pool_of(count: int) -> Scripted:
    """Workers that have room for 8192 tokens each."""
    made = Scripted(count, max_queue_tokens=10**7)

    def widen(executor: ScriptedExecutor) -> None:
        executor.info = replace(INFO, max_batch_tokens=1024)

    made.prepare = widen
    return await made.start()


def urgent(call: Call, priority: int) -> Call:
    return replace(call, priority=priority)


async def test_neither_a_sample_nor_a_score_waits_for_a_call_of_many_samples() -> None:
    made = await pool_of(1)
    async with (
        made.pool.run(LARGE, "a") as large,
        made.pool.run(sample_call(2, n=1, max_tokens=5), "b") as sample,
        made.pool.run(score_call(3, [1] * 5, 10), "c") as score,
        made.pool.run(sample_call(4, n=1, max_tokens=5), "a") as own,
    ):
        assert sum(call.prompts[0].n for call in calls_of(made, large)) == MAX_SAMPLES
        assert large.waiting
        assert all(len(stream.running) == 1 for stream in (sample, score, own))
        assert made.pool._calls.admission.throughput.pressed, "parts wait for room in the worker"
    assert made.pool.workers[0].work.all == Taken()


async def test_urgent_calls_wait_neither_for_less_urgent_samples_nor_for_each_other() -> None:
    made = await pool_of(1)
    async with (
        made.pool.run(LARGE, "a"),
        made.pool.run(urgent(sample_call(2, n=100, max_tokens=5), 5), "b") as first,
        made.pool.run(urgent(sample_call(3, n=100, max_tokens=5), 5), "b") as second,
    ):
        assert not first.waiting
        assert not second.waiting


async def test_urgent_tokens_wait_for_urgent_ones_alone() -> None:
    made = await pool_of(1)
    async with (
        made.pool.run(score_call(1, [1], *[4000] * 4), "a") as slow,
        made.pool.run(score_call(2, [1], 10, priority=5), "b") as first,
        made.pool.run(score_call(3, [1], *[4000] * 3, priority=5), "b") as second,
    ):
        assert slow.waiting
        assert first.running
        assert len(second.running) == 2, "8 steps of 1024 tokens for what is urgent"
        assert second.waiting


async def test_calls_of_many_samples_go_on_by_turns() -> None:
    """What is passed over keeps its place: nobody gains by it."""
    made = await pool_of(1)
    worker = made.workers[0]
    async with (
        made.pool.run(LARGE, "a") as large,
        made.pool.run(replace(LARGE, call_id=2), "b") as later,
    ):
        assert (len(large.running), len(later.running)) == (8, 1)
        turns = []
        while large.waiting and later.waiting:
            running = {stream: set(stream.running) for stream in (large, later)}
            worker.draw(next(iter(worker.calls)))
            await settled()
            turns += [s.client for s, before in running.items() if set(s.running) - before]
            assert abs(turns.count("a") - turns.count("b")) <= 2
        assert len(turns) >= 14


async def test_a_large_part_is_not_overtaken_by_small_ones_while_it_waits_for_tokens() -> None:
    made = await pool_of(1)
    wide = score_call(2, [1], 4000)
    async with (
        made.pool.run(score_call(1, [1], 4000, 3000), "a"),
        made.pool.run(wide, "b") as waits,
        made.pool.run(score_call(3, [1], 10), "c") as small,
    ):
        assert not waits.running
        assert not small.running


async def test_what_is_passed_over_goes_first_once_nothing_of_it_runs() -> None:
    """Others keep the worker at its most samples: it has one part at a time all the same."""
    made = await pool_of(1)
    worker = made.workers[0]
    async with (
        made.pool.run(sample_call(1, n=MAX_SAMPLES, max_tokens=10), "a"),
        made.pool.run(sample_call(2, n=64, max_tokens=5), "b") as stream,
    ):
        (first,) = stream.running
        assert stream.waiting
        worker.draw(first)
        await settled()
        (second,) = stream.running
        assert second != first
        assert not stream.waiting


def calls_of(made: Scripted, stream: object) -> list[SampleCall]:
    parts = made.pool.workers[0].parts.values()
    return [p.call for p in parts if p.stream is stream and isinstance(p.call, SampleCall)]


@pytest.mark.timeout(120)
async def test_an_engine_draws_a_single_sample_beside_all_that_it_can_draw() -> None:
    config = EngineConfig(model=str(tiny_model_path()), dtype="float32")
    pool = WorkerPool(
        lambda _index: LocalExecutor(config), PoolSettings(max_queue_tokens=1 << 20), "tiny"
    )
    pool.start()
    try:
        while not pool.takes_calls:
            await pool.wait_changed()
        async with (
            pool.run(sample_call(1, n=2 * MAX_SAMPLES, max_tokens=400), "a") as large,
            pool.run(sample_call(2, n=1, max_tokens=4), "b") as small,
            pool.run(score_call(3, [1, 2], 3), "c") as score,
        ):
            begun = set(large.running)
            for stream in (small, score):
                while not stream.ended:
                    assert await stream.next(60.0) is not None
            assert set(large.running) == begun, "none of its parts has ended"
    finally:
        await pool.drain(0.0)
