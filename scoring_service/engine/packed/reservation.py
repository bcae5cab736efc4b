"""Room that is promised before it is taken, so that what has begun can always be finished."""

from __future__ import annotations

from dataclasses import dataclass

from scoring_service.engine.packed.sample_run import SampleRun
from scoring_service.engine.packed.store import SegmentStore


@dataclass(eq=False, slots=True)
class Reservation:
    """Pages for the longest completion of a group, used by one completion after another."""

    pages: int
    used: int | None = None
    """What a completion took of it; None while none does."""
    closed: bool = False
    """Whether the group has no further completion to begin."""


class Room:
    """What may be taken of the pages.

    A group begins only when its prompt and its longest completion fit beside what is promised to
    others. Samples grow as they are drawn, and give way to older ones; so the pages that never
    give way must leave enough for the longest sample, and the oldest always ends.

    Where a call that has nothing under way waits, samples leave it what becomes free: each that
    ends would else be followed by others that take its pages, for as long as there are samples.
    """

    def __init__(self, store: SegmentStore) -> None:
        self._store = store
        self._promised = 0
        self._samples: dict[SampleRun, int] = {}
        """Samples under way -> the pages they may come to need."""
        self.refused = 0
        """Pages that were asked for last and will be there once samples end; 0 = none."""
        self.claimed = 0
        """Free pages that samples leave to a call that waits."""

    @property
    def free(self) -> int:
        """Pages that are promised to nobody."""
        return self._store.available - self._promised

    def admits(self, pages: int, sample_pages: int = 0) -> bool:
        """Whether something may begin that takes `pages` and keeps them until it ends.

        Args:
            pages: of a prompt and, for a group, of its longest completion.
            sample_pages: that one of its samples may come to need.
        """
        given_back = sum(len(sample.pages) for sample in self._samples)
        longest = max([sample_pages, *self._samples.values()])
        fits = pages + longest <= self.free + given_back
        self.refused = pages if fits and pages > self.free else 0
        return fits and pages <= self.free

    @property
    def free_for_samples(self) -> int:
        """Pages that samples may grow into."""
        return max(0, self.free - self.claimed)

    def reserve(self, pages: int) -> Reservation:
        """Promises pages to a group."""
        self._promised += pages
        return Reservation(pages)

    def use(self, reservation: Reservation, pages: int) -> bool:
        """Whether a completion of the group may take `pages` now.

        The first takes of what was promised, and leaves the rest promised to those after it;
        others share what is promised to nobody.
        """
        if reservation.used is None:
            reservation.used = pages
            self._promised -= pages
            return True
        return pages <= self.free

    def unuse(self, reservation: Reservation) -> None:
        """The completion that took the promised pages gave them back."""
        if not reservation.closed:
            self._promised += reservation.used or 0
        reservation.used = None

    def close(self, reservation: Reservation) -> None:
        """The group has no further completion to begin."""
        reservation.closed = True
        self._promised -= reservation.pages - (reservation.used or 0)

    def add_sample(self, sample: SampleRun, pages: int) -> None:
        """A sample is under way that may come to need so many pages."""
        self._samples[sample] = pages

    def remove_sample(self, sample: SampleRun) -> None:
        """A sample ended."""
        self._samples.pop(sample, None)
