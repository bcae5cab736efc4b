"""Segments: runs of new tokens, each continuing another, cut on fixed seams."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
from torch import Tensor

from scoring_service.types import Int32Array

SlotArray = npt.NDArray[np.int64]
NO_SLOTS: SlotArray = np.empty(0, dtype=np.int64)


@dataclass(frozen=True, slots=True)
class DecodeToken:
    """One token of a sample: a segment of its own, whose keys are kept."""

    token_id: int
    slots: SlotArray
    """Of every position up to the token's own."""


@dataclass(eq=False, slots=True)
class Segment:
    """A run of tokens of one branch.

    `holders` counts who still needs the segment: branches that end or pass through it, and its
    children. Its pages go back when nobody does.
    """

    parent: Segment | None
    start: int
    """Absolute position of its first token."""
    token_ids: Int32Array
    kept: bool
    """Whether its keys and values go to pages; a leaf's are used once and forgotten."""
    key: bytes = b""
    """Names everything up to its end in the prefix cache; empty when it is not shared."""
    holders: int = 0
    pages: list[int] = field(default_factory=list)
    slots: SlotArray = field(default_factory=NO_SLOTS.copy)
    """int64 [n], where each token's keys and values are kept; empty before pages are taken."""
    end_state: Tensor | None = None
    """Final hidden state of its last token, [H], once computed: the row that follows it."""
    done: int = 0
    """Leading tokens of it that were computed."""

    @property
    def computed(self) -> bool:
        """Whether all of it was."""
        return self.done == len(self.token_ids)

    @property
    def stop(self) -> int:
        """Absolute position after its last token."""
        return self.start + len(self.token_ids)

    def chain(self) -> list[Segment]:
        """From the root to this segment."""
        found: list[Segment] = []
        here: Segment | None = self
        while here is not None:
            found.append(here)
            here = here.parent
        return found[::-1]

    def chain_slots(self) -> SlotArray:
        """Where keys and values of every position up to this segment's end are kept."""
        return np.concatenate([segment.slots for segment in self.chain()])

    def slots_before(self) -> SlotArray:
        """Where keys and values of every position before what is still to compute are kept."""
        before = NO_SLOTS if self.parent is None else self.parent.chain_slots()
        return np.concatenate([before, self.slots[: self.done]]) if self.done else before


@dataclass(frozen=True, slots=True)
class SegmentRange:
    """What a step computes of a segment: all that is left of it, or some of that."""

    segment: Segment
    first: int
    """Index of the first token in the segment."""
    stop: int
    """Index after the last one."""

    @property
    def tokens(self) -> int:
        """Number of tokens."""
        return self.stop - self.first

    @property
    def start(self) -> int:
        """Absolute position of the first token."""
        return self.segment.start + self.first


def seams(start: int, stop: int, chunk_size: int) -> Iterator[tuple[int, int]]:
    """Cuts positions start … stop - 1 at the multiples of `chunk_size`."""
    while start < stop:
        end = min(stop, (start // chunk_size + 1) * chunk_size)
        yield start, end
        start = end


def child_key(parent_key: bytes, token_ids: Int32Array) -> bytes:
    """The prefix cache's name of `token_ids` after whatever `parent_key` names."""
    return hashlib.blake2b(parent_key + token_ids.tobytes(), digest_size=16).digest()
