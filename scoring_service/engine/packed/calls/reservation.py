"""Room that is promised before it is taken, so that what has begun can always be finished."""

from __future__ import annotations

from dataclasses import dataclass

from scoring_service.engine.attention.store import SegmentStore
from scoring_service.engine.packed.calls.sample_run import SampleRun


@dataclass(eq=False, slots=True)
class Reservation:
    """Pages for the longest completion of a group, used by one completion after another."""

    pages: int
    used: int | None = None
    """What a completion took of it; None while none does."""
    closed: bool = False
    """Whether the group has no further completion to begin."""


@dataclass(frozen=True, slots=True, order=True)
class Need:
    """What could not be had."""

    pages: int
    """Of a prompt and, for a group, of its longest completion."""
    sample_pages: int
    """That one of its samples may come to need."""


_NOTHING = Need(0, 0)


class Room:
    """What may be taken of the pages.

    A group begins only when its prompt and its longest completion fit beside what is promised to
    others. Samples grow as they are drawn, and are preempted for older ones; so the pages that are
    never preempted must leave enough for the longest sample, and the oldest always ends.

    Where a call that has nothing under way waits, others leave it what becomes free: each item that
    ends would else be followed by others that take its pages, for as long as there are any.
    """

    def __init__(self, store: SegmentStore) -> None:
        self._store = store
        self._promised = 0
        self._shared = 0
        """Pages of completions that others of their groups began beside."""
        self._samples: dict[object, int] = {}
        """Samples under way, and prompts that are to have some -> pages that one may need."""
        self._longest = 0
        """The most that any of them may."""
        self._held_by_samples = 0
        """Pages that they have."""
        self.refused: Need | None = None
        """What was asked for last, if it cannot be had yet."""
        self.claim: tuple[Need, int] | None = None
        """What the first of the calls waits for that have nothing under way, and its priority."""
        self.asks_first = True
        """Whether who asks now goes before that call."""

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
        fits = self._fits(pages, sample_pages, beside=self._left_to_first)
        admitted = fits and pages <= self.free
        self.refused = None if admitted else Need(pages, sample_pages)
        return admitted

    @property
    def _left_to_first(self) -> Need:
        """What who asks now leaves to the call that waits before it."""
        return _NOTHING if self.claim is None or self.asks_first else self.claim[0]

    def _fits(self, pages: int, sample_pages: int, beside: Need = _NOTHING) -> bool:
        """Whether there is room once samples gave theirs back, for the longest of them as well."""
        longest = max(sample_pages, self._longest, beside.sample_pages)
        return pages + longest + beside.pages <= self.free + self._held_by_samples

    def free_for_samples(self, priority: int) -> int:
        """Pages that samples of a priority may grow into."""
        if self.claim is None or self.claim[1] < priority:
            return self.free
        need = self.claim[0]
        # What waits for others than samples gets nothing from their waiting.
        claimed = need.pages if self._fits(need.pages, need.sample_pages) else 0
        return max(0, self.free - claimed)

    def lends(self, pages: int) -> bool:
        """Whether there are pages that nobody waits for."""
        claimed = _NOTHING if self.claim is None else self.claim[0]
        return pages + claimed.pages <= self.free and self._fits(pages, 0, beside=claimed)

    def reserve(self, pages: int) -> Reservation:
        """Promises pages to a group."""
        self._promised += pages
        return Reservation(pages)

    def use(self, reservation: Reservation, pages: int) -> bool:
        """Whether a completion of the group may take `pages` now.

        The first takes of what was promised, and leaves the rest promised to those after it;
        others share what is promised to nobody, beside the longest sample.
        """
        if reservation.used is None:
            reservation.used = pages
            self._promised -= pages
            return True
        if pages > self.free or not self._fits(pages, 0):
            return False
        if self._waits_for_shared and not self._fits(pages, 0, beside=self._left_to_first):
            return False
        self._shared += pages
        return True

    @property
    def _waits_for_shared(self) -> bool:
        """Whether the call that waits before who asks now could begin if such completions ended.

        Where it could not, it waits for the group itself, which should be done soon.
        """
        if self.claim is None or self.asks_first:
            return False
        need = self.claim[0]
        return self._fits(need.pages - self._shared, need.sample_pages)

    def give_back_shared(self, pages: int) -> None:
        """A completion gave back what it took where nothing was promised to it."""
        self._shared -= pages

    def unuse(self, reservation: Reservation) -> None:
        """The completion that took the promised pages gave them back."""
        if not reservation.closed:
            self._promised += reservation.used or 0
        reservation.used = None

    def close(self, reservation: Reservation) -> None:
        """The group has no further completion to begin."""
        reservation.closed = True
        self._promised -= reservation.pages - (reservation.used or 0)

    def expect(self, sample: object, pages: int) -> None:
        """A sample that may come to need so many pages is under way, and has none yet.

        Args:
            sample: or the prompt that is to have such samples. From when it is admitted nobody may
                take what they need, though the first may begin many steps later.
            pages: of one of them.
        """
        self._samples[sample] = pages
        self._longest = max(self._longest, pages)

    def expect_no_more(self, sample: object) -> None:
        """A sample ended, or a prompt has no further ones to begin."""
        if self._samples.pop(sample, 0) == self._longest:
            self._longest = max(self._samples.values(), default=0)

    def grow(self, sample: SampleRun, pages: int) -> None:
        """A sample takes so many pages.

        Raises:
            IndexError: there are not enough.
        """
        sample.add_pages(self._store.take(pages))
        self._held_by_samples += pages

    def take_back(self, sample: SampleRun) -> int:
        """A sample gives its pages back, and forgets the keys in them; how many there were."""
        pages = sample.preempt()
        self._store.give_back(pages)
        self._held_by_samples -= len(pages)
        return len(pages)

    def remove_sample(self, sample: SampleRun) -> None:
        """A sample ended, and gives back what it has."""
        self.take_back(sample)
        self.expect_no_more(sample)
