"""One prompt group on its way through steps."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np

from scoring_service.engine.attention.segments import Segment, SegmentRange
from scoring_service.engine.events import ScoreSlice
from scoring_service.engine.outputs.row_slices import (
    RowSlices,
    last_wanted_row,
    realised_ids,
    rows_per_slice,
    wanted_rows,
)
from scoring_service.engine.outputs.rows import block_bytes
from scoring_service.engine.packed.calls.reservation import Reservation
from scoring_service.types import CompletionTask, GroupTask, Int32Array, RowBlock, ScoreCall


def tokens_to_compute(
    task: CompletionTask, next_token: bool, prompt_tokens: int, chunk_size: int
) -> int:
    """Leading tokens of a completion whose states are needed: those of whole segments.

    A segment's length decides bits, and which of its rows are wanted must not.

    Args:
        task: the completion.
        next_token: whether the row after its last token is wanted, too.
        prompt_tokens: before it.
        chunk_size: between seams.
    """
    last = last_wanted_row(task, next_token)
    if last == 0:
        return 0
    seam = ((prompt_tokens + last - 1) // chunk_size + 1) * chunk_size
    return min(seam - prompt_tokens, len(task.token_ids))


@dataclass(eq=False, slots=True)
class CompletionRun:
    """A completion whose segments exist, and what is still to be answered of it."""

    call: ScoreCall
    group: GroupTask
    task: CompletionTask
    prompt_end: Segment
    rows: Int32Array
    """Indices of the wanted rows, ascending."""
    slices: RowSlices
    end: Segment
    """The last segment that is needed, held: the prompt's end when that gives every row."""
    reservation: Reservation | None = None
    """Whose pages it took."""
    shared_pages: int = 0
    """Pages that it took where none were promised to it."""
    answered: int = 0
    """Rows that were given as slices."""

    @classmethod
    def begin(
        cls, call: ScoreCall, group: GroupTask, task: CompletionTask, prompt_end: Segment
    ) -> CompletionRun:
        """A completion before it has segments of its own."""
        rows = wanted_rows(task, call.next_token)
        slices = RowSlices(rows_per_slice(call, task))
        return cls(call, group, task, prompt_end, rows, slices, prompt_end)

    @property
    def row_bytes(self) -> int:
        """What a row takes of the reply."""
        return self.call.wants.row_bytes(self.task.candidates)

    def rows_of(self, piece: SegmentRange | None) -> Int32Array:
        """Wanted rows that come from a piece's states; None = from the prompt's end.

        Row i comes from the state one position earlier.
        """
        if piece is None:
            return self.rows[:1] if self.rows[0] == 0 else self.rows[:0]
        first = piece.start - self.prompt_end.stop + 1
        inside = (self.rows >= first) & (self.rows < first + piece.tokens)
        return self.rows[inside]

    def push(self, rows: Int32Array, block: RowBlock, weight_version: int) -> Iterator[ScoreSlice]:
        """Takes computed rows, in ascending order; gives slices that are full."""
        for start, piece in self.slices.push(rows, block):
            yield self._slice(start, piece, weight_version)

    def flush(self, weight_version: int) -> Iterator[ScoreSlice]:
        """What is pending, as a slice."""
        for start, piece in self.slices.flush():
            yield self._slice(start, piece, weight_version)

    def _slice(self, start: int, block: RowBlock, weight_version: int) -> ScoreSlice:
        self.answered += block.rows
        return ScoreSlice(
            call_id=self.call.call_id,
            group_index=self.group.index,
            completion_index=self.task.index,
            processing_index=self.group.processing_index,
            prompt_length=self.prompt_end.stop,
            start=start,
            block=block,
            last=self.answered == len(self.rows),
            weight_version=weight_version,
            size=block_bytes(block),
        )

    @property
    def done(self) -> bool:
        """Whether every wanted row was sent."""
        return self.answered == len(self.rows)


@dataclass(slots=True)
class ScoreRows:
    """Rows of one completion that a step answers."""

    run: CompletionRun
    rows: Int32Array
    states: list[int] = field(default_factory=list)
    """Where in the step's table of states each row's state is."""

    @property
    def realised_ids(self) -> Int32Array:
        """The realised token of each row, -1 for a next_token row."""
        return realised_ids(self.run.task, self.rows)

    @property
    def candidate_ids(self) -> Int32Array | None:
        """int32 [n, C] of these rows."""
        candidates = self.run.task.candidate_ids
        if candidates is None:
            return None
        if candidates.shape[0] == 1:
            return np.broadcast_to(candidates, (len(self.rows), candidates.shape[1]))
        return candidates[np.searchsorted(self.run.rows, self.rows)]
