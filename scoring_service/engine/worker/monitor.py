"""What a worker's loop is doing, as its heartbeat reports it from another thread."""

from __future__ import annotations

import time
from bisect import bisect_left
from collections.abc import Callable, Sequence

from scoring_service.engine.events import (
    ROWS_BUCKETS,
    CallEvent,
    Heartbeat,
    SampleSlice,
    ScoreSlice,
    WorkerStats,
)

HEARTBEAT_SECONDS = 1.0

Gauges = Callable[[], dict[str, int]]
"""Fields of WorkerStats that only the engine knows."""


class Monitor:
    """Counters of one worker. The loop writes, the heartbeat's thread reads."""

    def __init__(self) -> None:
        self._began: float | None = None
        self._steps = 0
        self._seconds = 0.0
        self._rows = 0
        self._buckets = [0] * (len(ROWS_BUCKETS) + 1)
        self._gauges: Gauges = dict

    def watch(self, gauges: Gauges) -> None:
        """Takes further numbers from the engine, once there is one."""
        self._gauges = gauges

    def begin_step(self) -> None:
        """A step begins."""
        self._began = time.monotonic()

    def end_step(self, events: Sequence[CallEvent]) -> None:
        """A step ended with these events."""
        began, self._began = self._began, None
        if began is not None:
            self._seconds += time.monotonic() - began
        rows = sum(_rows_of(event) for event in events)
        self._steps += 1
        self._rows += rows
        self._buckets[bisect_left(ROWS_BUCKETS, rows)] += 1

    def heartbeat(self) -> Heartbeat:
        """How things stand."""
        began = self._began
        stats = WorkerStats(
            steps=self._steps,
            step_seconds=self._seconds,
            rows_per_step=tuple(self._buckets),
            rows=self._rows,
            **self._gauges(),
        )
        return Heartbeat(0.0 if began is None else time.monotonic() - began, stats)


def _rows_of(event: CallEvent) -> int:
    if isinstance(event, ScoreSlice):
        return event.block.rows
    return len(event.token_ids) if isinstance(event, SampleSlice) else 0
