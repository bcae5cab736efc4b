"""Workers killed, stopped and restarted under mixed load: right answers or clean errors."""

from __future__ import annotations

import json
import math
import os
import random
import signal
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import pytest

from benchmarks.machine import describe, origin
from tests.chaos.load import RETRYABLE, Load
from tests.e2e.calls import SERVING, health
from tests.e2e.processes import children, frozen, until
from tests.e2e.served import Served, serving
from tests.intensity import SOAK, short_or_long

KILLS = int(short_or_long(2, 8))
QUIET_SECONDS = short_or_long(1, 20)
"""Before the first kill and after the last, for the rate of calls."""


def dead_workers(server: Served) -> int:
    """Deaths of workers that the server knows of."""
    return int(server.metrics.get("scoring_worker_restarts_total", 0))


def ready_workers(server: Served) -> int:
    return int(server.metrics["scoring_worker_ready"])


def kill(server: Served, rng: random.Random) -> float:
    """kill -9 of a worker, whether it answers or loads; when that was."""
    before = dead_workers(server)
    os.kill(rng.choice(sorted(children(server.process.pid))), signal.SIGKILL)
    killed = time.monotonic()
    until(lambda: dead_workers(server) > before, patience=10)
    return killed


def seconds_to_recover(server: Served, workers: int, killed: float, patience: float) -> float:
    """From the kill until every worker answers; infinite if that takes longer than `patience`."""
    while ready_workers(server) < workers:
        if time.monotonic() > killed + patience:
            return math.inf
        time.sleep(0.2)
    return time.monotonic() - killed


@dataclass(frozen=True)
class Figures:
    """One run."""

    workers: int
    kills: int
    restart_seconds: float
    """How long a killed worker is away under this load, as measured before the others."""
    recovery_seconds: list[float]
    """From each kill until all workers answer; null = longer than until the next kill."""
    during: dict[str, int]
    """How the calls ended that ended while workers were killed."""
    succeeded: float
    """Share of them."""
    calls_per_second_before: float
    calls_per_second_during: float
    calls_per_second_after: float

    def write(self, folder: Path) -> None:
        """Replaces those of the same number of workers."""
        out = folder / "kills.json"
        runs = json.loads(out.read_text()) if out.exists() else {}
        found = asdict(self)
        found["recovery_seconds"] = [
            round(seconds, 1) if math.isfinite(seconds) else None
            for seconds in self.recovery_seconds
        ]
        # Each with its own: a run replaces one and leaves the other.
        runs[f"{self.workers} workers"] = {**origin(), "machine": describe()} | {
            key: round(value, 3) if isinstance(value, float) else value
            for key, value in found.items()
        }
        out.write_text(json.dumps(runs, indent=1) + "\n")


def killed_under(load: Load, server: Served, workers: int) -> Figures:
    """Kills at intervals of twice the time that a restart takes.

    The short form goes on as soon as all answer again: its two kills are no rate of kills.
    """
    rng = random.Random(1)
    recoveries = []
    with load.running():
        time.sleep(QUIET_SECONDS)
        quiet = load.counted()
        # Under the load: on a machine that has other work, a restart shares its cores with it.
        away = seconds_to_recover(server, workers, kill(server, rng), patience=120)
        interval = 2 * away
        began = time.monotonic()
        for _ in range(KILLS):
            killed = kill(server, rng)
            recoveries.append(seconds_to_recover(server, workers, killed, interval))
            if SOAK:
                time.sleep(max(0.0, killed + interval - time.monotonic()))
        ended = time.monotonic()
        until(lambda: ready_workers(server) == workers, patience=120)
        recovered = time.monotonic()
        time.sleep(2 * QUIET_SECONDS)
        after = load.counted(recovered)
        rate_after = after.total() / (time.monotonic() - recovered)
    assert set(after) == {"ok"}
    during = load.counted(began, ended)
    return Figures(
        workers=workers,
        kills=KILLS,
        restart_seconds=away,
        recovery_seconds=recoveries,
        during=dict(during),
        succeeded=during["ok"] / during.total(),
        calls_per_second_before=quiet.total() / QUIET_SECONDS,
        calls_per_second_during=during.total() / (ended - began),
        calls_per_second_after=rate_after,
    )


def check_accounts(load: Load, server: Served) -> None:
    """What callers were told adds up to what the workers did, as each of them counted it."""
    told = sum(usage.head_rows for usage in load.usage)
    assert told > sum(usage.sampled_tokens for usage in load.usage) > 0
    # Heartbeats tell, one a second.
    until(lambda: server.metrics["scoring_rows_per_step_sum"] >= told, patience=10)
    time.sleep(1.5)
    assert server.metrics["scoring_rows_per_step_sum"] == told
    assert server.metrics["scoring_head_rows_total"] == told


@pytest.mark.parametrize("workers", [2, 4] if SOAK else [2])
@pytest.mark.timeout(1800)
def test_workers_that_are_killed_cost_some_calls_and_no_answer(
    workers: int, tmp_path: Path
) -> None:
    with serving("--num-workers", str(workers), "--metrics-port", "0") as server:
        load = Load(server.ready, threads=3, pause=0.02)
        until(lambda: ready_workers(server) == workers, patience=120)
        load.learn()
        check_accounts(load, server)
        figures = killed_under(load, server, workers)
        print(figures)
        figures.write(Path("benchmarks/results") if SOAK else tmp_path)
        assert not load.wrong, load.wrong[:3]
        assert set(load.counted()) <= RETRYABLE | {"ok"}
        assert set(load.broken) <= RETRYABLE, "the same of calls that had begun to be answered"
        assert figures.succeeded >= 0.6
        assert all(map(math.isfinite, figures.recovery_seconds)), "within twice the restart time"
        # The short form's two seconds of a dozen calls each say nothing of a rate.
        assert not SOAK or figures.calls_per_second_after >= 0.8 * figures.calls_per_second_before
        assert '"retried"' in "".join(server.err), "nothing was under way on a killed worker"
        deaths = [json.loads(line) for line in server.err if '"worker_died"' in line]
        assert len(deaths) >= KILLS
        assert {death["crashes"] for death in deaths} == {0}, "kills from outside are no crashes"
        assert '"crash_loop"' not in "".join(server.err)
        assert health(server.ready) == SERVING
        assert server.end() == 0


def test_a_stopped_worker_is_noticed_and_its_calls_move() -> None:
    flags = ("--num-workers", "2", "--heartbeat-timeout", "3", "--metrics-port", "0")
    with serving(*flags) as server:
        load = Load(server.ready, threads=2, pause=0.02)
        until(lambda: ready_workers(server) == 2, patience=120)
        load.learn()
        with load.running():
            time.sleep(1.0)
            with frozen(min(children(server.process.pid))):
                server.wait_for('"worker_hangs"', server.err)
                until(lambda: dead_workers(server) == 1)
            until(lambda: ready_workers(server) == 2, patience=120)
            time.sleep(1.0)
        assert not load.wrong, load.wrong[:3]
        assert set(load.counted()) == {"ok"}, "there was always one that answered"
        assert server.end() == 0
