"""Ten times more than there is: refused at once, and no worse for those who are let in."""

from __future__ import annotations

import asyncio
import gc
import json
import statistics
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import pytest

from benchmarks.machine import describe, origin
from scoring_client.proto import service_pb2_grpc
from scoring_service.pool.admission.admission import SHARE
from tests.chaos.ticker import ticking
from tests.e2e.calls import reason_of, retry_delay_of, score_request
from tests.e2e.processes import forget_peak, peak, resident
from tests.e2e.served import serving
from tests.intensity import SOAK, short_or_long

SECONDS = short_or_long(4, 60)
FULL_SECONDS = short_or_long(4, 30)
# Large enough that ten times as many are not what the machine is busy with: the client that sends
# them, and is refused, shares its cores with the server.
COPIES = 16
REQUEST = score_request([1] * 20, [2] * 300, copies=COPIES)
TOKENS = COPIES * 320
QUEUE_CALLS = 12
"""Calls that fit the queue: a full load, and what is beyond it is refused."""
QUEUE_TOKENS = (2 * QUEUE_CALLS + 1) * TOKENS * (SHARE + 1) // SHARE // 2
"""Half a call more: what is refused is not refused for want of room for any call. What is left is
for other clients."""

MAX_LATE = 0.2
"""Seconds of a machine's own delay that are allowed for, however late it made an idle process."""


def own_wait() -> float:
    """Seconds for which this thread could have run and had no core, so far; 0 where unknown."""
    try:
        return int(Path("/proc/thread-self/schedstat").read_text().split()[1]) / 1e9
    except OSError:
        return 0.0


@dataclass
class Seen:
    """What came of a period."""

    admitted: list[float] = field(default_factory=list)
    refused: list[float] = field(default_factory=list)
    of_the_server: list[float] = field(default_factory=list)
    """Of each refusal, without the time for which this client itself had no core."""
    codes: Counter[str] = field(default_factory=Counter)
    delays: list[float] = field(default_factory=list)

    async def call(self, stub: Any) -> None:
        began, waited = time.monotonic(), own_wait()
        try:
            async for _ in stub.Score(REQUEST, timeout=120):
                pass
        except grpc.aio.AioRpcError as error:
            self.codes[reason_of(error) or error.code().name] += 1
            self.refused.append(time.monotonic() - began)
            self.of_the_server.append(max(0.0, self.refused[-1] - (own_wait() - waited)))
            self.delays.append(retry_delay_of(error) or 0.0)
        else:
            self.codes["ok"] += 1
            self.admitted.append(time.monotonic() - began)


def p(values: list[float], percent: int) -> float:
    return statistics.quantiles(values, n=100, method="inclusive")[percent - 1]


def report(full: Seen, over: Seen, late: list[float], grown: int) -> dict[str, Any]:
    """Times in seconds, percentiles 50, 90, 99 and 100; memory at its highest, over what it was."""

    def percentiles(values: list[float]) -> list[float]:
        return [*(round(p(values, percent), 4) for percent in (50, 90, 99)), round(max(values), 4)]

    return {
        "seconds": SECONDS,
        "full_load_seconds": FULL_SECONDS,
        "full_load": dict(full.codes),
        "overload": dict(over.codes),
        "full_load_p50_p90_p99_max": percentiles(full.admitted),
        "overload_p50_p90_p99_max": percentiles(over.admitted),
        "refused_p50_p90_p99_max": percentiles(over.refused),
        "refused_without_the_clients_wait_p50_p90_p99_max": percentiles(over.of_the_server),
        "idle_process_overslept_p50_p90_p99_max": percentiles(late),
        "memory_grown_mib": grown >> 20,
    }


async def full_load(stub: Any, seconds: float) -> Seen:
    """The queue just full: as many calls at once as it holds, one after another."""
    seen = Seen()
    until = time.monotonic() + seconds

    async def one() -> None:
        while time.monotonic() < until:
            await seen.call(stub)

    await asyncio.gather(*(one() for _ in range(QUEUE_CALLS)))
    return seen


async def overload(stub: Any, seconds: float, rate: float) -> Seen:
    """Calls at a fixed rate, whatever comes of them."""
    seen = Seen()
    calls = []
    began = time.monotonic()
    for number in range(int(seconds * rate)):
        await asyncio.sleep(max(0.0, began + number / rate - time.monotonic()))
        calls.append(asyncio.create_task(seen.call(stub)))
    await asyncio.gather(*calls)
    return seen


async def measure(target: str, pid: int) -> tuple[Seen, Seen, list[float], int]:
    async with grpc.aio.insecure_channel(target) as channel:
        stub = service_pb2_grpc.ScoringServiceStub(channel)
        await full_load(stub, 1.0)
        full = await full_load(stub, FULL_SECONDS)
        rate = 10 * len(full.admitted) / FULL_SECONDS
        before = resident(pid)
        forget_peak(pid)
        # Else this process's own collections, of everything that pytest has, count as the server's.
        gc.collect()
        gc.freeze()
        with ticking() as late:
            over = await overload(stub, SECONDS, rate)
        gc.unfreeze()
        return full, over, late, peak(pid) - before


@pytest.mark.timeout(600)
def test_ten_times_overload(tmp_path: Path) -> None:
    with serving("--max-queue-tokens", str(QUEUE_TOKENS)) as server:
        full, over, late, grown = asyncio.run(measure(server.ready, server.process.pid))
    found = report(full, over, late, grown)
    print(found)
    out = Path("benchmarks/results/overload.json") if SOAK else tmp_path / "overload.json"
    written = {**origin(), "machine": describe(), **found}
    out.write_text(json.dumps(written, indent=1) + "\n")
    assert set(full.codes) == {"ok"}
    assert set(over.codes) == {"ok", "QUEUE_FULL"}
    assert over.codes["QUEUE_FULL"] > 4 * over.codes["ok"]
    assert min(over.delays) > 0, "every refusal says when to come back"
    assert grown < 100 << 20
    assert p(over.admitted, 99) <= 2 * p(full.admitted, 99)
    # The client shares two busy cores with the server, and waits for its own turn too. A machine
    # that lets a process wait that asks for nothing lets the server wait as long.
    # Of some 200 refusals in four seconds a hundredth is two: one stall of a core would decide.
    # But a machine that lets a process wait for longer than MAX_LATE says nothing of a server.
    assert p(over.of_the_server, short_or_long(95, 99)) <= 0.05 + min(max(late), MAX_LATE)
    assert not SOAK or p(over.refused, 99) <= 0.05
