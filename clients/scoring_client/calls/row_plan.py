"""The order in which an item's rows must arrive."""

from collections.abc import Sequence
from typing import Protocol

from scoring_client.errors import ProtocolError
from scoring_client.values.spans import Span


class RowOrder(Protocol):
    """Checks that slices of one item leave no gap, repeat nothing and stop where they should."""

    def take(self, start: int, count: int) -> None:
        """Accept ``count`` rows from ``start`` on.

        Raises:
            ProtocolError: other rows were due.
        """

    def finish(self) -> None:
        """Accept the end of the item.

        Raises:
            ProtocolError: rows are still due.
        """


class ConsecutiveRows:
    """Rows 0, 1, 2, … to an end that only the server knows: text, and samples."""

    def __init__(self) -> None:
        self._next = 0

    def take(self, start: int, count: int) -> None:
        """Accept ``count`` rows from ``start`` on.

        Raises:
            ProtocolError: other rows were due.
        """
        if count and start != self._next:
            raise ProtocolError(f"a slice starts at {start} where {self._next} was due")
        self._next += count

    def finish(self) -> None:
        """Accept the end wherever it is, but not before the first row.

        Raises:
            ProtocolError: there was none.
        """
        if self._next == 0:
            raise ProtocolError("the item ended without a row")


class ListedRows:
    """The rows of given spans, in order, and no other."""

    def __init__(self, spans: Sequence[Span]) -> None:
        """Take spans in ascending order without overlap."""
        self._due: list[tuple[int, int]] = []
        for start, length in spans:
            if not length:
                continue
            # Neighbours are one run: a slice may cross from one to the next.
            if self._due and self._due[-1][1] == start:
                self._due[-1] = (self._due[-1][0], start + length)
            else:
                self._due.append((start, start + length))

    def take(self, start: int, count: int) -> None:
        """Accept ``count`` rows from ``start`` on.

        Raises:
            ProtocolError: other rows were due.
        """
        if not count:
            return
        if not self._due:
            raise ProtocolError(f"rows {start}+{count} came after the last one asked for")
        due_start, due_stop = self._due[0]
        if start != due_start or start + count > due_stop:
            raise ProtocolError(
                f"rows {start}+{count} came where {due_start}+{due_stop - due_start} were due"
            )
        if start + count == due_stop:
            self._due.pop(0)
        else:
            self._due[0] = (start + count, due_stop)

    def finish(self) -> None:
        """Accept the end after the last row asked for.

        Raises:
            ProtocolError: rows are still due.
        """
        if self._due:
            start, stop = self._due[0]
            raise ProtocolError(f"the item ended before rows {start}+{stop - start}")
