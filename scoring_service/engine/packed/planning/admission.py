"""Who may begin something in a step: calls are asked one after another, the most urgent first."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

from scoring_service.engine.attention.store import SegmentStore
from scoring_service.engine.packed.calls.call_run import CallRun
from scoring_service.engine.packed.calls.reservation import Need, Room
from scoring_service.engine.packed.planning.scheduler import Place
from scoring_service.engine.packed.planning.waiting_line import WaitingLine

_REFUSED = 64
"""So many calls are told in one step that there is no room for them to begin. Those that come later
are less urgent, and are asked only if less was refused to them before: asking thousands took longer
than the step."""


class Admission:
    """Lets calls begin what there is room for, while one step is planned.

    Nobody else tells the `Room` whose claim others heed and who asks, or reads what it refused.
    """

    def __init__(
        self,
        calls: Mapping[int, CallRun],
        place: Callable[[CallRun], Place],
        store: SegmentStore,
        room: Room,
        heeds_claims: bool,
    ) -> None:
        """Claims room for the first that waits for it.

        Args:
            calls: under way, by id.
            place: of a call among others.
            store: that has the pages.
            room: of these.
            heeds_claims: whether others leave to the first that waits what becomes free.
        """
        self._place = place
        self._store = store
        self._room = room
        self._heeds_claims = heeds_claims
        self._line = WaitingLine(calls, place)
        self._kept = _pages_kept(calls.values())
        self._refusals = _Refusals()
        self._claim_for_first()

    def is_hopeless(self, run: CallRun) -> bool:
        """Whether a call would be refused for sure, so that it need not be asked."""
        covered = self._refusals.cover(run.waits_for)
        return run.is_waiting and self._heeds_claims and covered

    def ask(self, run: CallRun, tokens: int) -> None:
        """Lets a call begin units of so many tokens, and notes what it waits for.

        Raises:
            Exception: its units cannot be made; see `leave`.
        """
        first = self._first
        goes_first = first is None or run is first or self._place(run) < self._place(first)
        self._room.asks_first = goes_first
        self._fill(run, tokens)
        self._line.add(run)
        self._refusals.note(run.waits_for)
        if run is first or (run.waits_for is not None and goes_first):
            self._claim_for_first()

    def _fill(self, run: CallRun, tokens: int) -> None:
        self._room.refused = None
        run.fill(tokens)
        run.waits_for = self._room.refused if run.is_waiting else None

    def leave(self) -> None:
        """A call that was asked has ended."""
        self._claim_for_first()

    def _claim_for_first(self) -> None:
        """Lets others leave to a call what becomes free, if it can come to fit beside the rest."""
        self._first = first = self._line.first()
        need = None if first is None else first.waits_for
        self._room.claim = None
        if first is None or need is None or not self._heeds_claims:
            return
        if need.pages + need.sample_pages <= self._store.pages - self._kept:
            self._room.claim = need, first.call.priority


class _Refusals:
    """What could not be had in one step."""

    def __init__(self) -> None:
        self._count = 0
        self._least: Need | None = None

    def note(self, need: Need | None) -> None:
        """Somebody asked, and has to wait for this; None = has not."""
        if need is not None:
            self._count += 1
            if self._least is None or need < self._least:
                self._least = need

    def cover(self, need: Need | None) -> bool:
        """Whether many were refused, and somebody no more than this, who had a better claim.

        Args:
            need: what there was no room for when it was asked last; None = it never was.
        """
        if need is None or self._least is None or self._count < _REFUSED:
            return False
        return need.pages >= self._least.pages and need.sample_pages >= self._least.sample_pages


def _pages_kept(running: Iterable[CallRun]) -> int:
    """What calls hold whose readers take nothing."""
    stalled = [run for run in running if run.credit <= 0]
    samples = [sample for run in stalled for sample in run.samples]
    ends = [completion.end for run in stalled for completion in run.completions]
    ends += [sample.prompt_end for sample in samples]
    held = {id(segment): segment for end in ends for segment in end.chain()}
    own = sum(len(sample.pages) for sample in samples)
    return own + sum(len(segment.pages) for segment in held.values())
