"""Takes turns among calls: each step advances one call by one unit of work.

Pure bookkeeping around generators; it neither knows torch nor how events travel.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator
from dataclasses import dataclass, field, replace

from scoring_service.engine.bugs import bug_message
from scoring_service.engine.events import (
    CallEvent,
    CallFailed,
    CallFinished,
    CallStarted,
    SampleSlice,
    ScoreSlice,
)
from scoring_service.errors import Fault, Reason, deadline_passed
from scoring_service.types import Call, Usage

INITIAL_CREDIT = 8 << 20
"""Bytes of results a call may have on their way before its reader must take some."""

Progress = CallEvent | Usage | None
"""What a unit of work leaves: an event, an addition to the usage, or nothing to send."""

Work = Callable[..., Generator[Progress, None, None]]
"""From a call, and `weights=` where it is not to be computed with those that were loaded."""


@dataclass(slots=True)
class _Running:
    call: Call
    work: Generator[Progress, None, None]
    submitted: float
    started: float | None = None
    usage: Usage = field(default_factory=Usage)
    credit: int = INITIAL_CREDIT
    turn: int = 0


class Runner:
    """The calls of a worker.

    Among calls with credit, the highest priority goes first, and among equals the one whose last
    turn is longest ago.
    """

    def __init__(
        self,
        work: Work,
        log_bug: Callable[[Call, BaseException], None],
        device_is_lost: Callable[[], bool] = lambda: False,
        is_out_of_memory: Callable[[Exception], bool] = lambda _: False,
    ) -> None:
        self._work = work
        self._log_bug = log_bug
        self._device_is_lost = device_is_lost
        self._is_out_of_memory = is_out_of_memory
        self.is_sound = True
        """False once another process has to do it."""
        self._calls: dict[int, _Running] = {}
        self._turn = 0

    def flush_cache(self) -> int:
        """Nothing is cached."""
        return 0

    def submit(self, call: Call, weights: object = None, alone: bool = False) -> None:
        """Adds a call, to be computed with these weights; None = those that were loaded.

        All calls are computed alone here.
        """
        self._turn += 1
        work = self._work(call) if weights is None else self._work(call, weights=weights)
        self._calls[call.call_id] = _Running(call, work, time.monotonic(), turn=self._turn)

    def cancel(self, call_id: int) -> None:
        """Forgets a call and frees what it holds."""
        running = self._calls.pop(call_id, None)
        if running is not None:
            running.work.close()

    def add_credit(self, call_id: int, size: int) -> None:
        """The call's reader took this many bytes."""
        if (running := self._calls.get(call_id)) is not None:
            running.credit += size

    @property
    def can_step(self) -> bool:
        """Whether a call could be advanced now."""
        return any(running.credit > 0 for running in self._calls.values())

    def gauges(self) -> dict[str, int]:
        """What a heartbeat tells of this engine: nothing beside what is counted of any."""
        return {}

    def step(self) -> list[CallEvent]:
        """Advances one call by one unit of work; returns what there is to send."""
        if expired := self._expire():
            return expired
        ready = [running for running in self._calls.values() if running.credit > 0]
        running = min(ready, key=lambda r: (-r.call.priority, r.turn))
        self._turn += 1
        running.turn = self._turn
        events: list[CallEvent] = []
        began = time.monotonic()
        if running.started is None:
            running.started = began
            events.append(CallStarted(running.call.call_id))
        try:
            progress = next(running.work)
        except StopIteration:
            events.append(self._finish(running))
            return events
        except Exception as error:  # noqa: BLE001 - a bug ends its call, not the worker
            events.append(self._fail(running, error))
            return events
        running.usage = replace(
            running.usage,
            compute_seconds=running.usage.compute_seconds + time.monotonic() - began,
        )
        if isinstance(progress, Usage):
            running.usage += progress
        elif progress is not None:
            if isinstance(progress, ScoreSlice | SampleSlice):
                running.credit -= progress.size
            events.append(progress)
        return events

    def _fail(self, running: _Running, error: Exception) -> CallFailed:
        call_id = running.call.call_id
        del self._calls[call_id]
        if self._is_out_of_memory(error):
            # A library met it that may not get over it: what is one item's own ends that alone.
            self.is_sound = False
            fault = Fault(Reason.OUT_OF_MEMORY, "the device ran out of memory for this call")
        else:
            self._log_bug(running.call, error)
            self.is_sound = not self._device_is_lost()
            fault = Fault(Reason.INTERNAL_ERROR, bug_message(error))
        return CallFailed(call_id, fault)

    def _expire(self) -> list[CallEvent]:
        """Drops calls whose callers no longer wait, before they cost anything more."""
        now = time.monotonic()
        late = [call_id for call_id, r in self._calls.items() if r.call.deadline < now]
        for call_id in late:
            self.cancel(call_id)
        return [CallFailed(call_id, deadline_passed()) for call_id in late]

    def _finish(self, running: _Running) -> CallFinished:
        del self._calls[running.call.call_id]
        started = running.submitted if running.started is None else running.started
        usage = replace(running.usage, queue_seconds=started - running.submitted)
        return CallFinished(running.call.call_id, usage)
