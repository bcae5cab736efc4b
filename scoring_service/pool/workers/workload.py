"""What a worker's parts take, by priority."""

from __future__ import annotations

from dataclasses import dataclass

from scoring_service.pool.streams.stream import Part


@dataclass(frozen=True, slots=True)
class Taken:
    """What parts take; see `parts.Size`."""

    load: int = 0
    samples: int = 0
    reply_bytes: int = 0
    """Bytes of results on their way, at most."""

    def __add__(self, other: Taken) -> Taken:
        """What both take."""
        return Taken(
            self.load + other.load,
            self.samples + other.samples,
            self.reply_bytes + other.reply_bytes,
        )

    def __sub__(self, other: Taken) -> Taken:
        """What one takes without the other."""
        return Taken(
            self.load - other.load,
            self.samples - other.samples,
            self.reply_bytes - other.reply_bytes,
        )


class Workload:
    """Adds up what parts take that are not held back by their readers."""

    def __init__(self) -> None:
        self.all = Taken()
        """What all parts take."""
        self._by_priority: dict[int, Taken] = {}
        self._weighed: dict[int, Taken] = {}
        """What each part takes, by its id."""

    def weigh(self, part: Part) -> None:
        """Counts what a part takes; nothing while its reader holds it back."""
        self.forget(part)
        if not part.is_held_back:
            taken = Taken(part.size.load, part.size.samples, part.reply_bytes)
            self._weighed[part.part_id] = taken
            self._set(part, self._of(part) + taken)
            self.all += taken

    def forget(self, part: Part) -> None:
        """Counts a part no more."""
        if (taken := self._weighed.pop(part.part_id, None)) is not None:
            self._set(part, self._of(part) - taken)
            self.all -= taken

    def from_priority(self, priority: int) -> Taken:
        """Of the parts that are at least so urgent."""
        return sum((t for p, t in self._by_priority.items() if p >= priority), Taken())

    def _of(self, part: Part) -> Taken:
        return self._by_priority.get(part.call.priority, Taken())

    def _set(self, part: Part, taken: Taken) -> None:
        if taken == Taken():
            self._by_priority.pop(part.call.priority, None)
        else:
            self._by_priority[part.call.priority] = taken
