"""Times of GPU work: CUDA events around replays of a graph, over buffers that no cache holds.

What cannot be captured in a graph, because it waits for the device or asks a generator on the way,
is timed by events around calls from Python. Such a time has the launches in it, and is compared
with one that was taken the same way and with no other. Where two are compared they take turns, the
one that begins changing with every round: clocks and heat are the same for both.
"""

from __future__ import annotations

import statistics
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch

from scoring_service.engine.machine.random_numbers import generator_kept

Work = Callable[[int], Any]
"""Does the work once, on buffer number n."""

_CACHE_BYTES = 256 << 20
"""More than the second-level cache of any GPU: buffers rotate over so many bytes."""

_MAX_BUFFERS = 512
"""A row of logits of 150,000 tokens needs 440; a graph of more calls takes long to be captured."""

_REPLAYS = 10

GRAPH, EVENTS, CLOCK = "graph", "events", "clock"
"""How something is timed; by the clock only in a dry run, whose times mean nothing."""


def buffers_for(size: int) -> int:
    """Buffers of this size that calls go through in turn, so that none finds its own in a cache."""
    if not torch.cuda.is_available():
        return 1
    return max(1, min(_MAX_BUFFERS, -(-_CACHE_BYTES // max(size, 1))))


@dataclass(frozen=True)
class Timing:
    """Seconds of one call."""

    timed: str
    """`GRAPH`, `EVENTS` or `CLOCK`."""
    times: list[float]
    """Of every replay, or round of calls, over all buffers."""
    not_captured: str | None = None
    """Why there is no graph."""

    @property
    def seconds(self) -> float:
        """The median."""
        return statistics.median(self.times)

    def as_json(self) -> dict[str, Any]:
        """Plain data."""
        found = {"timed": self.timed, "seconds": self.seconds, "times": self.times}
        return found | ({"not_captured": self.not_captured} if self.not_captured else {})


@dataclass(frozen=True)
class Ready:
    """Work that was done once, and that can be timed as often as one likes."""

    timed: str
    """`GRAPH`, `EVENTS` or `CLOCK`."""
    run: Callable[[], object]
    """Goes through all buffers once."""
    work: Work
    """What a graph reads lives as long as this."""
    not_captured: str | None = None

    @property
    def rounds(self) -> int:
        """That it is timed in; times of a dry run mean nothing."""
        return 1 if self.timed == CLOCK else _REPLAYS

    def timing(self, buffers: int) -> Timing:
        """Of one call, by itself."""
        times = [seconds(self.run, buffers) for _ in range(self.rounds)]
        return Timing(self.timed, times, self.not_captured)


@dataclass
class Sides:
    """Who does the same work, and how long each takes; what a peer cannot do is put down."""

    buffers: int
    """That each goes through in turn."""
    found: dict[str, dict[str, Any]] = field(default_factory=dict)
    """As the report has them: timings, {"cannot": why} or {"failed": why}."""
    _ready: dict[str, list[Ready]] = field(default_factory=dict)
    """Of each that can be run again, one for each way of timing."""

    def ours(self, name: str, work: Work) -> float:
        """Seconds of one call, by a graph; measured both ways, since a peer may have no graph.

        Raises:
            Exception: whatever the work raises: without it there is no figure.
        """
        self._add(name, ready(work, self.buffers))
        if self.found[name]["timed"] == GRAPH:
            by_events = ready(work, self.buffers, captured=False)
            self.found[f"{name}, by events"] = by_events.timing(self.buffers).as_json()
            self._ready[name].append(by_events)
        return float(self.found[name]["seconds"])

    def peer(self, name: str, make: Callable[[], Work]) -> None:
        """Times one call of a peer's; where it fails, that is its own affair.

        Args:
            name: of the peer.
            make: leaves its work; may raise as the work itself may, and NotImplementedError where
                the peer has no such work.
        """
        try:
            self._add(name, ready(make(), self.buffers))
        except NotImplementedError as error:
            self.found[name] = {"cannot": str(error)}
        except Exception as error:  # noqa: BLE001 - whatever it is, our figures stand
            traceback.print_exc()
            self.found[name] = {"failed": f"{type(error).__name__}: {error}"[:500]}

    def missing(self, name: str) -> None:
        """Puts down a peer that is not there."""
        self.found[name] = {"cannot": "it is not installed"}

    def speed_over(self, peer: str, ours: str) -> float | None:
        """How many times as fast ours is, as `ratio` has it; None where the peer failed."""
        try:
            return self.ratio(peer, ours)
        except Exception as error:  # noqa: BLE001 - as in `peer`
            traceback.print_exc()
            self.found[peer]["failed"] = f"{type(error).__name__}: {error}"[:500]
            return None

    def ratio(self, name: str, other: str) -> float | None:
        """One's seconds over another's: the median of rounds in which they take turns.

        Both are timed alike; None where one of them was not. Each round's ratio is kept (`over`).

        Raises:
            Exception: whatever the work raises.
        """
        pair = self._alike(name, other)
        if pair is None:
            return None
        ratios = [first / second for first, second in by_turns(pair, self.buffers)]
        self.found[name].setdefault("over", {})[other] = ratios
        return statistics.median(ratios)

    def _add(self, name: str, work: Ready) -> None:
        self.found[name] = work.timing(self.buffers).as_json()
        self._ready[name] = [work]

    def _alike(self, name: str, other: str) -> tuple[Ready, Ready] | None:
        for mine in self._ready.get(name, []):
            for theirs in self._ready.get(other, []):
                if mine.timed == theirs.timed:
                    return mine, theirs
        return None


def by_turns(pair: tuple[Ready, Ready], buffers: int) -> list[tuple[float, float]]:
    """Seconds of one call of each, round by round; who begins changes."""
    first, second = pair
    rounds = []
    for number in range(first.rounds):
        order = (first, second) if number % 2 == 0 else (second, first)
        taken = {id(one): seconds(one.run, buffers) for one in order}
        rounds.append((taken[id(first)], taken[id(second)]))
    return rounds


def ready(work: Work, buffers: int, captured: bool = True) -> Ready:
    """Work after a warm-up, as replays of a graph that goes through all buffers once.

    A graph, because kernels of microseconds would else be timed by how fast Python launches them.

    Args:
        work: what is timed.
        buffers: that it goes through in turn.
        captured: whether a graph is tried; else calls are timed as Python makes them.

    Raises:
        Exception: whatever the work raises when it is called.
    """

    def calls() -> None:
        for buffer in range(buffers):
            work(buffer)

    calls()
    if not torch.cuda.is_available():
        return Ready(CLOCK, calls, work)
    torch.cuda.synchronize()
    why = None
    if captured:
        try:
            graph = capture(work, buffers)
        except Exception as error:  # noqa: BLE001 - it is called below, where its own faults show
            why = f"{type(error).__name__}: {error}".splitlines()[0][:300]
        else:
            return Ready(GRAPH, graph.replay, work)
    return Ready(EVENTS, calls, work, why)


def capture(work: Work, buffers: int) -> torch.cuda.CUDAGraph:
    """A graph of one call on every buffer.

    Raises:
        Exception: the work cannot be captured. It is called once beforehand, where waiting for the
            device is an error: a capture that is broken off leaves more behind than a call.
    """
    with waiting_forbidden():
        work(0)
    torch.cuda.synchronize()
    graph, stream = torch.cuda.CUDAGraph(), torch.cuda.current_stream()
    with generator_kept():
        try:
            with torch.cuda.graph(graph, capture_error_mode="thread_local"):
                for buffer in range(buffers):
                    work(buffer)
        except Exception:
            torch.cuda.set_stream(stream)  # which a capture that is broken off does not leave
            raise
    return graph


@contextmanager
def waiting_forbidden() -> Iterator[None]:
    """Operators of torch that make the host wait for the device raise meanwhile."""
    before = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode(before)


def seconds(run: Callable[[], object], buffers: int) -> float:
    """Of one call, of a run through all buffers: between events, or by the clock in a dry run."""
    if not torch.cuda.is_available():
        began = time.perf_counter()
        run()
        return (time.perf_counter() - began) / buffers
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin.record()
    run()
    end.record()
    end.synchronize()
    return begin.elapsed_time(end) / 1e3 / buffers


def extra_bytes(work: Work) -> int:
    """Most that one call allocates beyond what it finds; 0 in a dry run."""
    if not torch.cuda.is_available():
        return 0
    work(0)
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    kept = work(0)
    torch.cuda.synchronize()
    most = torch.cuda.max_memory_allocated() - before
    del kept
    return most


def profile(work: Work) -> list[dict[str, Any]]:
    """The kernels of one call and the time in each, longest first; none in a dry run.

    Where a profiler is not allowed to watch, that is said instead: the figure stands without it.
    """
    if not torch.cuda.is_available():
        return []
    try:
        return _kernels(work)
    except Exception as error:  # noqa: BLE001 - what was measured before is worth more
        traceback.print_exc()
        return [{"failed": f"{type(error).__name__}: {error}"[:500]}]


def _kernels(work: Work) -> list[dict[str, Any]]:
    from torch.profiler import ProfilerActivity
    from torch.profiler import profile as record

    with record(activities=[ProfilerActivity.CUDA]) as found:
        work(0)
        torch.cuda.synchronize()
    events = sorted(found.key_averages(), key=lambda event: -event.self_device_time_total)
    return [
        {"kernel": event.key, "calls": event.count, "microseconds": event.self_device_time_total}
        for event in events[:8]
    ]
