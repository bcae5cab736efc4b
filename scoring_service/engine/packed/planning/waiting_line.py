"""Calls that wait for room, in the order in which they may have it."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Mapping

from scoring_service.engine.packed.calls.call_run import CallRun
from scoring_service.engine.packed.planning.scheduler import Place


class WaitingLine:
    """Of the calls that wait with nothing under way, whichever weights they run on, the first.

    It stands for as long as one step is planned: until then nobody who waits changes places.
    """

    def __init__(self, calls: Mapping[int, CallRun], place: Callable[[CallRun], Place]) -> None:
        """Begins with those that waited already.

        Args:
            calls: under way, by id.
            place: of a call among others.
        """
        self._calls = calls
        self._place = place
        self._line = [self._entry(run) for run in calls.values() if self._is_in_line(run)]
        heapq.heapify(self._line)

    def first(self) -> CallRun | None:
        """The call whose turn it is; None while nobody waits."""
        while self._line:
            run = self._calls.get(self._line[0][1])
            if run is not None and self._is_in_line(run):
                return run
            heapq.heappop(self._line)
        return None

    def add(self, run: CallRun) -> None:
        """A call found that there is no room for it; it may be in the line already."""
        if self._is_in_line(run):
            heapq.heappush(self._line, self._entry(run))

    def _entry(self, run: CallRun) -> tuple[Place, int]:
        return self._place(run), run.call.call_id

    @staticmethod
    def _is_in_line(run: CallRun) -> bool:
        return run.waits_for is not None and run.credit > 0
