"""Mixed load for long: memory and descriptors stay where they were, answers the same."""

from __future__ import annotations

import json
import os
import random
import statistics
import time
from pathlib import Path
from typing import Any

import pytest

from benchmarks.machine import describe, origin
from tests.chaos.load import Load
from tests.e2e.calls import score_request, stub_of
from tests.e2e.processes import children, cpu_seconds, descriptors, resident, until
from tests.e2e.served import serving
from tests.intensity import SOAK, short_or_long

MINUTES = float(os.environ.get("SOAK_MINUTES", short_or_long(0.5, 30)))
SAMPLES = 20
MOST_ROWS = int(short_or_long(32, 700))
"""Of a step: four calls at once of this load hold fewer."""
STEEPEST = 0.5
"""MiB a minute. Allocators that find a little more of use now and then have given 0.3."""


def fill_caches(target: str, pids: list[int]) -> None:
    """Scores texts that nobody repeats until their kept prompts fill the pages of every worker."""
    rng = random.Random(0)
    with stub_of(target) as stub:
        for _ in range(100):
            before = [resident(pid) for pid in pids]
            texts = [[rng.randrange(2, 2000) for _ in range(2000)] for _ in range(8)]
            for call in [stub.Score(score_request(ids, [2]), timeout=60) for ids in texts]:
                list(call)
            if all(resident(pid) - held < 1 << 20 for pid, held in zip(pids, before, strict=True)):
                return
    raise AssertionError(f"memory never settles: {before} bytes before the last texts")


def fill_with_products(target: str, workers: int) -> None:
    """Has every worker compute steps of every size that the load may give it.

    A CPU keeps what was compiled for each number of rows (`ONEDNN_PRIMITIVE_CACHE_CAPACITY`), a
    megabyte or two each, and hours of random company go by before most have come.
    """
    rng = random.Random(1)
    with stub_of(target) as stub:
        for rows in range(2, MOST_ROWS):
            texts = [[rng.randrange(2, 2000) for _ in range(rows)] for _ in range(workers)]
            for call in [stub.Score(score_request([2], ids), timeout=60) for ids in texts]:
                list(call)


def slopes_of(figures: list[dict[str, Any]]) -> list[float]:
    """MiB a minute by which each process grew, as a straight line through the figures has it."""
    minutes = [figure["seconds"] / 60 for figure in figures]
    memory = zip(*(figure["resident_mib"] for figure in figures), strict=True)
    return [statistics.linear_regression(minutes, of_one).slope for of_one in memory]


@pytest.mark.timeout(7200)
def test_memory_and_descriptors_stay_flat(tmp_path: Path) -> None:
    # The prefix cache fills the pages that there are, which is no leak: a soak gives it few.
    flags = "--num-workers 2 --self-audit-rate 0.1 --metrics-port 0 --memory-utilization 0.01"
    with serving(*flags.split()) as server:
        until(lambda: server.ready and server.metrics["scoring_worker_ready"] == 2, patience=120)
        load = Load(server.ready, threads=3, pause=short_or_long(0.02, 1.0))
        load.learn()
        pids = [server.process.pid, *sorted(children(server.process.pid))]
        fill_caches(server.ready, pids)
        fill_with_products(server.ready, workers=len(pids) - 1)
        figures = []
        began = time.monotonic()
        with load.running():
            time.sleep(short_or_long(10, 0))  # the allocator, too, has seen every size by then
            for _ in range(SAMPLES + 1):
                figures.append(
                    {
                        "seconds": round(time.monotonic() - began, 1),
                        "calls": len(load.outcomes),
                        "resident_mib": [resident(pid) >> 20 for pid in pids],
                        "descriptors": [descriptors(pid) for pid in pids],
                    }
                )
                time.sleep(60 * MINUTES / SAMPLES)
        assert [server.process.pid, *sorted(children(server.process.pid))] == pids
        metrics = server.metrics
        audits = server.metric("scoring_self_audits_total", outcome="same")
        busy = [round(cpu_seconds(pid), 1) for pid in pids]
    assert not load.wrong, load.wrong[:3]
    assert set(load.counted()) == {"ok"}
    # The audits compare with the numbers that were sent: on a CPU they are equal to the bit.
    assert audits > 0
    assert metrics["scoring_self_audit_max_difference"] == 0.0
    # A third of the way is for caches to fill, of the short form half: it takes them some seconds.
    warm, last = figures[short_or_long(SAMPLES // 2, SAMPLES // 3)], figures[-1]
    grown = [b - a for a, b in zip(warm["resident_mib"], last["resident_mib"], strict=True)]
    more = [b - a for a, b in zip(warm["descriptors"], last["descriptors"], strict=True)]
    report = {
        **origin(),
        "machine": describe(),
        "minutes": MINUTES,
        "calls": len(load.outcomes),
        "audits": audits,
        "cpu_seconds": busy,
        "grown_mib": grown,
        "more_descriptors": more,
        "figures": figures,
    }
    slopes = slopes_of(figures[len(figures) // 2 :])
    report["mib_a_minute"] = [round(slope, 3) for slope in slopes]
    out = Path("benchmarks/results/soak.json") if SOAK else tmp_path / "soak.json"
    out.write_text(json.dumps(report, indent=1) + "\n")
    print(json.dumps({k: v for k, v in report.items() if k != "figures"}))
    assert max(grown) < short_or_long(32, 20), grown
    # A quarter of a minute says nothing of a slope.
    assert not SOAK or max(slopes) < STEEPEST, slopes
    assert max(more) <= 4, more
