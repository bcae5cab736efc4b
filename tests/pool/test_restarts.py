"""When a dead worker is started again, and which deaths are a crash loop."""

from __future__ import annotations

import asyncio
from dataclasses import replace

from scoring_service.pool.settings import PoolSettings
from scoring_service.pool.workers.readiness import PoolState
from scoring_service.pool.workers.restarts import RestartPolicy
from tests.pool.scripted import INFO, Scripted, ScriptedExecutor

SETTINGS = PoolSettings(max_queue_tokens=1)


def test_kills_from_outside_are_no_crash_loop() -> None:
    policy = RestartPolicy(SETTINGS)
    for _ in range(100):
        pause = policy.died(from_outside=True, answered_seconds=0.1)
        assert pause == SETTINGS.first_backoff
    assert not policy.looping


def test_crashes_pause_longer_each_time_and_are_a_loop_at_last() -> None:
    policy = RestartPolicy(SETTINGS)
    pauses = []
    while not policy.looping:
        pauses.append(policy.died(from_outside=False, answered_seconds=1.0))
    assert pauses == [0.5, 1.0, 2.0, 4.0, SETTINGS.longest_backoff]


def test_kills_while_it_loads_are_no_crash_loop_either() -> None:
    policy = RestartPolicy(SETTINGS)
    for _ in range(100):
        pause = policy.died(from_outside=True, answered_seconds=None)
        assert pause == SETTINGS.first_backoff
    assert not policy.looping


def test_kills_while_it_loads_count_where_memory_may_be_the_reason() -> None:
    """The kernel, out of memory, kills as an operator does."""
    policy = RestartPolicy(SETTINGS)
    for _ in range(SETTINGS.crash_limit):
        assert not policy.looping
        policy.died(from_outside=True, answered_seconds=None, maybe_memory=True)
    assert policy.looping
    again = RestartPolicy(SETTINGS)
    for _ in range(SETTINGS.crash_limit):
        again.died(from_outside=True, answered_seconds=0.1, maybe_memory=True)
    assert not again.looping, "it had all the memory that it needs to answer"


def test_a_worker_that_answered_for_long_starts_anew() -> None:
    policy = RestartPolicy(SETTINGS)
    for _ in range(20):
        assert policy.died(from_outside=False, answered_seconds=61.0) == SETTINGS.first_backoff
    assert not policy.looping


async def test_a_worker_that_keeps_loading_another_model_is_tried_ever_more_rarely() -> None:
    """The files were replaced: it takes as long to find out as a start does, for nothing."""
    made = await Scripted(2, longest_backoff=0.05).start()

    def prepare(executor: ScriptedExecutor) -> None:
        executor.info = replace(INFO, weights_digest="other")

    made.prepare = prepare
    made.workers[1].die("SIGKILL", from_outside=True)
    async with asyncio.timeout(5):
        while not made.pool.workers[1].policy.looping:
            await made.pool.wait_changed()
    assert made.pool.state is PoolState.READY, "the other one answers"
    assert made.pool.workers[0].policy.crashes == 0
    await made.pool.drain(0.0)
