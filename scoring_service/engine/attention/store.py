"""Segments and their pages: shared while they are in use, kept as a prefix cache afterwards."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass

from scoring_service.engine.attention.pages import PagePool, pages_for, slots_of
from scoring_service.engine.attention.segments import NO_SLOTS, Segment, child_key, seams
from scoring_service.types import Int32Array


@dataclass(slots=True)
class CacheCounters:
    """What the prefix cache did."""

    looked_up_tokens: int = 0
    hit_tokens: int = 0
    evicted_tokens: int = 0


class SegmentStore:
    """Hands out segments, finds those that exist already, and takes back what nobody holds.

    Who holds a segment holds all of its ancestors. A segment with a key stays after its last
    holder left, until its pages are wanted: then the one that was released longest ago goes
    first. An ancestor is always released after its descendants, so a chain is evicted from its
    end.
    """

    def __init__(self, pool: PagePool, chunk_size: int) -> None:
        self.chunk_size = chunk_size
        self.counters = CacheCounters()
        self._pool = pool
        self._shared: dict[bytes, Segment] = {}
        self._idle: OrderedDict[bytes, Segment] = OrderedDict()
        self._idle_pages = 0

    @property
    def available(self) -> int:
        """Pages that can be had: free, or kept for nobody in particular."""
        return self._pool.free + self._idle_pages

    @property
    def pages(self) -> int:
        """Pages of the pool."""
        return self._pool.pages

    def prompt_pages(self, token_ids: Int32Array, root_key: bytes | None) -> int:
        """Pages that `prompt` would take from those available now."""
        return sum(
            pages_for(stop - start)
            for start, stop, key in self._prompt_segments(token_ids, root_key)
            if key not in self._shared or key in self._idle
        )

    def prompt(self, token_ids: Int32Array, root_key: bytes | None) -> list[Segment]:
        """The chain of a prompt, its end held for the caller.

        Args:
            token_ids: the whole prompt.
            root_key: what the prompt's cache entries depend on beside tokens; None = the prompt is
                neither looked for nor kept, and its pages are free once nobody holds it.

        Raises:
            IndexError: there are not enough pages; nothing is held.
        """
        chain: list[Segment] = []
        hits = 0
        for start, stop, key in self._prompt_segments(token_ids, root_key):
            found = self._shared.get(key)
            above = chain[-1] if chain else None
            if found is None:
                found = self._extend(above, start, token_ids[start:stop], kept=True, key=key)
            else:
                self._add_holder(found)
                hits += (stop - start) if found.computed else 0
            chain.append(found)
        if root_key is not None:
            self.counters.looked_up_tokens += len(token_ids)
        self.counters.hit_tokens += hits
        return chain

    def branch_pages(self, start: int, stop: int) -> int:
        """Pages that `branch` would take: its last segment is a leaf and takes none."""
        return sum(pages_for(b - a) for a, b in seams(start, stop, self.chunk_size) if b < stop)

    def branch(self, parent: Segment, token_ids: Int32Array) -> list[Segment]:
        """Segments of a completion after `parent`, the last one held for the caller.

        Raises:
            IndexError: there are not enough pages; nothing is held.
        """
        self.hold(parent)
        chain: list[Segment] = []
        first, last = parent.stop, parent.stop + len(token_ids)
        for start, stop in seams(first, last, self.chunk_size):
            above = chain[-1] if chain else parent
            new_ids = token_ids[start - first : stop - first]
            chain.append(self._extend(above, start, new_ids, kept=stop < last))
        return chain

    def lend(self, segment: Segment) -> None:
        """Gives pages to one that needs none by itself; they come back with the segment.

        Raises:
            IndexError: there are not enough.
        """
        segment.pages = self.take(pages_for(len(segment.token_ids)))
        segment.slots = slots_of(segment.pages, len(segment.token_ids))

    def take(self, count: int) -> list[int]:
        """Pages, at the cost of what is kept for nobody in particular.

        Raises:
            IndexError: even so there are not enough.
        """
        while self._pool.free < count and self._idle:
            self._evict()
        return self._pool.take(count)

    def give_back(self, pages: list[int]) -> None:
        """Returns pages that belong to no segment."""
        self._pool.give_back(pages)

    def hold(self, segment: Segment) -> None:
        """One more holder of a segment and its ancestors."""
        here: Segment | None = segment
        while here is not None:
            self._add_holder(here)
            here = here.parent

    def release(self, segment: Segment) -> None:
        """One holder less; with nobody left, what was computed and has a key is kept for later."""
        here: Segment | None = segment
        while here is not None:
            above = here.parent
            here.holders -= 1
            if here.holders == 0:
                if here.key and here.computed:
                    self._idle[here.key] = here
                    self._idle_pages += len(here.pages)
                else:
                    self._drop(here)
            here = above

    def flush(self) -> int:
        """Forgets everything that nobody holds; how many pages it had."""
        pages = self._idle_pages
        while self._idle:
            self._evict()
        return pages

    def _extend(
        self,
        held: Segment | None,
        start: int,
        token_ids: Int32Array,
        kept: bool,
        key: bytes = b"",
    ) -> Segment:
        """A new segment after one that the caller holds; the caller now holds the new one.

        Raises:
            IndexError: there are not enough pages. After whatever is raised, the caller holds
                nothing any more.
        """
        segment = Segment(held, start, token_ids, kept, key, holders=1)
        if kept:
            try:
                segment.pages = self.take(pages_for(len(token_ids)))
                segment.slots = slots_of(segment.pages, len(token_ids))
            except Exception:
                self._pool.give_back(segment.pages)
                if held is not None:
                    self.release(held)
                raise
        if key:
            self._shared[key] = segment
        return segment

    def _add_holder(self, segment: Segment) -> None:
        if segment.holders == 0:
            del self._idle[segment.key]
            self._idle_pages -= len(segment.pages)
        segment.holders += 1

    def _evict(self) -> None:
        _, segment = self._idle.popitem(last=False)
        self._idle_pages -= len(segment.pages)
        self.counters.evicted_tokens += len(segment.token_ids)
        self._drop(segment)

    def _drop(self, segment: Segment) -> None:
        if segment.key:
            del self._shared[segment.key]
        self._pool.give_back(segment.pages)
        segment.pages = []
        # Nothing can be written there by whoever still knows the segment.
        segment.slots = NO_SLOTS
        segment.end_state = None

    def _prompt_segments(
        self, token_ids: Int32Array, root_key: bytes | None
    ) -> Iterator[tuple[int, int, bytes]]:
        """(start, stop, key) of each; an empty key is the one that nothing is found by."""
        key = root_key or b""
        for start, stop in seams(0, len(token_ids), self.chunk_size):
            if root_key is not None:
                key = child_key(key, token_ids[start:stop])
            yield start, stop, key
