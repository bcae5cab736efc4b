"""Slices of an item into the whole, for scores, top-K and samples alike."""

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, Generic, TypeVar

import numpy as np

from scoring_client.calls.row_plan import RowOrder
from scoring_client.errors import ProtocolError, ResultChangedError
from scoring_client.values.arrays import Int32Array
from scoring_client.values.results import CompletionScores
from scoring_client.values.samples import Sample

PartT = TypeVar("PartT", bound=CompletionScores | Sample)
"""CompletionScores, CompletionTopK or Sample."""


def row_count(part: CompletionScores | Sample) -> int:
    """Return T."""
    return len(part.token_ids)


def first_row(part: CompletionScores | Sample) -> int:
    """Return the index of the first row (or token), 0 when there is none."""
    if isinstance(part, Sample):
        return part.start
    return int(part.rows[0]) if len(part.rows) else 0


def without_first_rows(part: PartT, count: int) -> PartT:
    """Return ``part`` without its first ``count`` rows (or tokens)."""
    if count == 0:
        return part
    values: dict[str, Any] = {
        name: value[count:]
        for name in part.ROW_FIELDS
        if (value := getattr(part, name)) is not None
    }
    if isinstance(part, Sample):
        values["start"] = part.start + count
    return dataclasses.replace(part, **values)


def join(parts: Sequence[PartT]) -> PartT:
    """Return consecutive parts as one.

    Arrays are copied once, so that the result owns memory it can write to: what torch takes
    without a warning. All that has no entry for each row comes from the last part.
    """
    values: dict[str, Any] = {}
    for name in parts[-1].ROW_FIELDS:
        pieces = [getattr(part, name) for part in parts]
        if pieces[-1] is None:
            values[name] = None
        elif isinstance(pieces[-1], tuple):
            values[name] = tuple(entry for piece in pieces for entry in piece)
        else:
            values[name] = np.concatenate(pieces)
    samples = [part for part in parts if isinstance(part, Sample)]
    if samples:
        values["start"] = samples[0].start
        if samples[-1].text is not None:
            values["text"] = "".join(sample.text or "" for sample in samples)
    return dataclasses.replace(parts[-1], **values)


class Assembler(ABC, Generic[PartT]):
    """Checks the slices of one item and decides what the caller gets of them, and when."""

    def __init__(self, new_order: Callable[[], RowOrder], *, drop_rows: bool = False) -> None:
        """Begin with nothing.

        Args:
            new_order: Makes the order in which rows are due.
            drop_rows: The rows were asked for only to carry what stands beside them.
        """
        self._new_order = new_order
        self._drop_rows = drop_rows
        self.restart()

    def restart(self) -> None:
        """Expect the item from its first row (again)."""
        self._order = self._new_order()
        self._version: int | None = None

    def add(self, part: PartT) -> PartT | None:
        """Take the next slice; return what the caller gets now, if anything.

        Raises:
            ProtocolError: the slice leaves a gap, repeats rows, ends too early, or comes from
                other weights than the slice before.
            ResultChangedError: it contradicts what the caller got before the stream broke.
        """
        self._order.take(first_row(part), row_count(part))
        if part.last:
            self._order.finish()
        if not isinstance(part, Sample):
            if self._version not in (None, part.weight_version):
                raise ProtocolError(
                    f"weight versions {self._version} and {part.weight_version} in one completion"
                )
            self._version = part.weight_version
        return self._accept(part)

    @abstractmethod
    def _accept(self, part: PartT) -> PartT | None:
        """Take a slice that is in order."""


class WholeAssembler(Assembler[PartT]):
    """Holds an item's slices back until the item is whole."""

    def restart(self) -> None:
        """Forget what came."""
        super().restart()
        self._parts: list[PartT] = []

    def _accept(self, part: PartT) -> PartT | None:
        self._parts.append(without_first_rows(part, row_count(part) if self._drop_rows else 0))
        return join(self._parts) if part.last else None


class SliceAssembler(Assembler[PartT]):
    """Hands slices on as they come; after a resend, only what was not handed on before."""

    def __init__(self, new_order: Callable[[], RowOrder], *, drop_rows: bool = False) -> None:
        """Begin with nothing; arguments as of Assembler."""
        self._rows_given = 0
        self._text_given = 0
        self._version_given: int | None = None
        # The tokens drawn, to see whether a sample that is drawn again is the same one.
        self._drawn: list[Int32Array] = []
        super().__init__(new_order, drop_rows=drop_rows)

    def restart(self) -> None:
        """Expect the item from its first row again, and skip what the caller has."""
        super().restart()
        self._rows_seen = 0
        self._text_seen = 0

    def _accept(self, part: PartT) -> PartT | None:
        count = row_count(part)
        known = min(max(self._rows_given - self._rows_seen, 0), count)
        self._refuse_change(part, known)
        self._rows_seen += count
        self._rows_given = max(self._rows_given, self._rows_seen)
        fresh = without_first_rows(part, count if self._drop_rows else known)
        text = ""
        if isinstance(fresh, Sample) and fresh.text is not None:
            text = self._fresh_text(fresh.text)
            fresh = dataclasses.replace(fresh, text=text)
        return join([fresh]) if row_count(fresh) or fresh.last or text else None

    def _refuse_change(self, part: PartT, known: int) -> None:
        ends_early = part.last and self._rows_seen + row_count(part) < self._rows_given
        if isinstance(part, Sample):
            drawn = np.concatenate([np.empty(0, dtype=np.int32), *self._drawn])
            again = drawn[self._rows_seen : self._rows_seen + known]
            if ends_early or not np.array_equal(again, part.token_ids[:known]):
                raise ResultChangedError(
                    f"the stream broke after {self._rows_given} tokens of this sample were handed "
                    "on, and drawing it again gave other tokens: the weights changed in between"
                )
            self._drawn = [drawn, part.token_ids[known:]]
            return
        if ends_early or (self._rows_given and self._version_given != part.weight_version):
            raise ResultChangedError(
                f"the stream broke after {self._rows_given} rows of this completion were handed on "
                f"under weight version {self._version_given}; now it is {part.weight_version}"
            )
        self._version_given = part.weight_version

    def _fresh_text(self, text: str) -> str:
        known = min(max(self._text_given - self._text_seen, 0), len(text))
        self._text_seen += len(text)
        self._text_given = max(self._text_given, self._text_seen)
        return text[known:]
