"""Small calls all the while, and the pause that they see when weights change."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from typing import Any

from benchmarks.children import child
from scoring_client import ScoringClient

_PROMPT, _COMPLETIONS = list(range(40, 72)), [list(range(100, 116))]
"""A call small enough that its latency shows a pause of milliseconds."""


@contextmanager
def scoring(target: str) -> Iterator[Callable[[], list[tuple[float, float, int]]]]:
    """Small calls all the while, from a process of its own; what ends them and tells of each.

    That one raises EOFError or OSError where the process has died.
    """

    def latencies() -> list[tuple[float, float, int]]:
        pipe.send("stop")
        calls: list[tuple[float, float, int]] = pipe.recv()
        return calls

    with child(_score_all_the_time, target) as (_, pipe):
        pipe.recv()
        yield latencies


def _score_all_the_time(pipe: Connection, target: str) -> None:
    """Small calls one after the other, each with when it began and ended, until told to end."""
    calls = []
    with ScoringClient(target) as client:
        client.score([(_PROMPT, _COMPLETIONS)])
        pipe.send(None)
        while not pipe.poll():
            began = time.monotonic()
            scores = client.score([(_PROMPT, _COMPLETIONS)])[0][0]
            calls.append((began, time.monotonic(), scores.weight_version))
    pipe.send(calls)


def pauses(calls: Any, quiet_end: float, pushes: Any) -> dict[str, Any]:
    """Latencies without updates and of the calls that met one, and what the worst exceeds usual."""
    quiet = [ended - began for began, ended, _ in calls if ended < quiet_end]
    usual = statistics.median(quiet)
    met = [
        ended - began
        for began, ended, _ in calls
        if any(began < push["ended"] and ended > push["began"] for push in pushes)
    ]
    return {
        "without_update": _summary(quiet),
        "during_updates": _summary(met),
        "longest_pause_seconds": max(met) - usual,
        "versions_seen": len({version for _, _, version in calls}),
    }


def _summary(seconds: list[float]) -> dict[str, float]:
    ordered = sorted(seconds)
    return {
        "calls": len(ordered),
        "p50": ordered[len(ordered) // 2],
        "p99": ordered[min(len(ordered) - 1, int(len(ordered) * 0.99))],
        "longest": ordered[-1],
    }
