"""When a dead worker is started again, and which deaths are a crash loop."""

from __future__ import annotations

from scoring_service.pool.restarts import RestartPolicy
from scoring_service.pool.settings import PoolSettings

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
