"""Workers killed, stopped and restarted under mixed load: right answers or clean errors."""

from __future__ import annotations

import os
import random
import signal
import time

import pytest

from tests.chaos.intensity import SOAK, short_or_long
from tests.chaos.load import RETRYABLE, Load
from tests.e2e.calls import SERVING, health
from tests.e2e.processes import children, until
from tests.e2e.served import Served, serving

KILLS = int(short_or_long(2, 8))


def ready_workers(server: Served) -> int:
    """Workers that ever said that they answer, less those that died since."""
    lines = "".join(server.err)
    return lines.count('"worker_ready"') - lines.count('"worker_died"')


def restart_seconds(server: Served, workers: int) -> float:
    """How long a killed worker is away, with nothing else to do."""
    victim = min(children(server.process.pid))
    os.kill(victim, signal.SIGKILL)
    began = time.monotonic()
    until(lambda: ready_workers(server) == workers - 1)
    until(lambda: ready_workers(server) == workers, patience=120)
    return time.monotonic() - began


@pytest.mark.parametrize("workers", [2, 4] if SOAK else [2])
@pytest.mark.timeout(1800)
def test_workers_that_are_killed_cost_some_calls_and_no_answer(workers: int) -> None:
    rng = random.Random(1)
    with serving("--num-workers", str(workers)) as server:
        load = Load(server.ready, threads=3, pause=0.02)
        until(lambda: ready_workers(server) == workers, patience=120)
        load.learn()
        interval = 2 * restart_seconds(server, workers)
        with load.running():
            time.sleep(1.0)
            began = time.monotonic()
            for _ in range(KILLS):
                alive = sorted(children(server.process.pid))
                os.kill(rng.choice(alive), signal.SIGKILL)
                time.sleep(interval)
            ended = time.monotonic()
            until(lambda: ready_workers(server) == workers, patience=2 * interval)
            recovered = time.monotonic()
            time.sleep(2.0)
        during = load.counted(began, ended)
        after = load.counted(recovered)
        print(f"restart {interval / 2:.1f} s; during {dict(during)}; after {dict(after)}")
        assert not load.wrong, load.wrong[:3]
        assert set(during) <= RETRYABLE | {"ok"}
        assert during["ok"] >= 0.6 * during.total()
        assert set(after) == {"ok"}
        assert recovered - ended < interval, "back within twice the restart time"
        assert '"retried"' in "".join(server.err), "nothing was under way on a killed worker"
        assert "crash loop" not in "".join(server.err)
        assert health(server.ready) == SERVING
        assert server.end() == 0


def test_a_stopped_worker_is_noticed_and_its_calls_move() -> None:
    with serving("--num-workers", "2", "--heartbeat-timeout", "3") as server:
        load = Load(server.ready, threads=2, pause=0.02)
        until(lambda: ready_workers(server) == 2, patience=120)
        load.learn()
        with load.running():
            time.sleep(1.0)
            os.kill(min(children(server.process.pid)), signal.SIGSTOP)
            server.wait_for('"worker_hangs"', server.err)
            until(lambda: ready_workers(server) == 2, patience=120)
            time.sleep(1.0)
        assert not load.wrong, load.wrong[:3]
        assert set(load.counted()) == {"ok"}, "there was always one that answered"
        assert server.end() == 0
