"""Which rows of a completion are wanted, and the slices that they are sent in."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np

from scoring_service.engine.outputs.rows import cut_rows, join_rows
from scoring_service.types import CompletionTask, Int32Array, RowBlock, ScoreCall

Run = tuple[int, RowBlock]
"""First row, and consecutive rows from there."""


def wanted_rows(completion: CompletionTask, next_token: bool) -> Int32Array:
    """Indices of the rows to answer, ascending; the next_token row is the last."""
    parts = [np.arange(start, start + length) for start, length in completion.spans]
    if next_token:
        parts.append(np.array([len(completion.token_ids)]))
    return np.concatenate(parts).astype(np.int32)


def last_wanted_row(completion: CompletionTask, next_token: bool) -> int:
    """Index of the last row to answer."""
    if next_token:
        return len(completion.token_ids)
    start, length = completion.spans[-1]
    return start + length - 1


def realised_ids(completion: CompletionTask, rows: Int32Array) -> Int32Array:
    """The realised token of each of these rows, -1 for a next_token row."""
    padded = np.append(completion.token_ids, np.int32(-1))
    return padded[rows]


class RowSlices:
    """Joins rows that continue one another into slices of at most `limit` rows."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._pending: list[RowBlock] = []
        self._start = 0
        self._held = 0

    def push(self, rows: Int32Array, block: RowBlock) -> Iterator[Run]:
        """Takes rows by their indices, ascending; gives the slices that are complete."""
        for first, run in contiguous_runs(rows, block):
            yield from self.push_run(first, run)

    def push_run(self, first: int, run: RowBlock) -> Iterator[Run]:
        """Takes consecutive rows; gives the slices that are complete."""
        offset = 0
        while offset < run.rows:
            if self._held == self._limit or first + offset != self._start + self._held:
                yield from self.flush()
            if not self._pending:
                self._start = first + offset
            taken = min(run.rows - offset, self._limit - self._held)
            self._pending.append(cut_rows(run, offset, offset + taken))
            self._held += taken
            offset += taken

    def flush(self) -> Iterator[Run]:
        """Gives what is pending."""
        if self._pending:
            run = self._start, join_rows(self._pending)
            self._pending, self._held = [], 0
            yield run


def slice_runs(runs: Iterable[Run], limit: int) -> Iterator[Run]:
    """Joins runs that continue one another, and cuts them at `limit` rows."""
    slices = RowSlices(limit)
    for first, run in runs:
        yield from slices.push_run(first, run)
    yield from slices.flush()


def contiguous_runs(rows: Int32Array, block: RowBlock) -> Iterator[Run]:
    """Splits a block where its row indices leave a gap."""
    breaks = (np.flatnonzero(np.diff(rows) != 1) + 1).tolist()
    for start, stop in zip([0, *breaks], [*breaks, len(rows)], strict=True):
        yield int(rows[start]), cut_rows(block, start, stop)


def rows_per_slice(call: ScoreCall, completion: CompletionTask) -> int:
    """Rows of a slice, so that it holds about the call's `slice_bytes`."""
    return max(1, call.slice_bytes // call.wants.row_bytes(completion.candidates))
