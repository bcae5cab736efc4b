"""The plain path of scoring: one completion a forward pass, its rows in slices as tiles finish."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np

from scoring_service.engine.causal_model import CausalModel
from scoring_service.engine.events import ScoreSlice
from scoring_service.engine.rows import block_bytes, compute_rows, cut_rows, join_rows
from scoring_service.engine.tiles import plain_tile_rows
from scoring_service.kernels import dispatch
from scoring_service.types import CompletionTask, GroupTask, Int32Array, RowBlock, ScoreCall

Run = tuple[int, RowBlock]
"""First row, and consecutive rows from there."""


def score_completion(
    model: CausalModel, call: ScoreCall, group: GroupTask, completion: CompletionTask
) -> Iterator[ScoreSlice]:
    """Slices of one completion's wanted rows, ascending."""
    rows = wanted_rows(completion, call.next_token)
    answered = 0
    runs = _tile_runs(model, call, group, completion, rows)
    for start, block in slice_runs(runs, rows_per_slice(call, completion)):
        answered += block.rows
        yield ScoreSlice(
            call_id=call.call_id,
            group_index=group.index,
            completion_index=completion.index,
            processing_index=group.processing_index,
            prompt_length=len(group.prompt_ids),
            start=start,
            block=block,
            last=answered == len(rows),
            weight_version=model.weight_version,
            size=block_bytes(block),
        )


def wanted_rows(completion: CompletionTask, next_token: bool) -> Int32Array:
    """Indices of the rows to answer, ascending; the next_token row is the last."""
    parts = [np.arange(start, start + length) for start, length in completion.spans]
    if next_token:
        parts.append(np.array([len(completion.token_ids)]))
    return np.concatenate(parts).astype(np.int32)


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


def _tile_runs(
    model: CausalModel,
    call: ScoreCall,
    group: GroupTask,
    completion: CompletionTask,
    rows: Int32Array,
) -> Iterator[Run]:
    """Computes the wanted rows tile by tile; a tile is split where its rows leave a gap."""
    ids = np.concatenate([group.prompt_ids, completion.token_ids]).tolist()
    # The last token's own state is only wanted for the next_token row; it is computed always, so
    # that a row's bits do not depend on whether that row was asked for.
    states = model.states(ids)[len(group.prompt_ids) - 1 :]
    tile = plain_tile_rows(model.head.vocab_size, states.device.type)
    for first in range(0, len(rows), tile):
        tile_indices = rows[first : first + tile]
        realised = realised_ids(completion, tile_indices)
        logits_T_V = model.head.logits(states[tile_indices])
        block = compute_rows(
            dispatch.reference_tile(logits_T_V, group.processing.temperature),
            realised,
            group.processing,
            call.wants,
            _candidate_rows(completion.candidate_ids, first, len(tile_indices)),
        )
        block = cut_rows(block, 0, block.rows, next_token=bool(realised[-1] < 0))
        yield from contiguous_runs(tile_indices, block)


def contiguous_runs(rows: Int32Array, block: RowBlock) -> Iterator[Run]:
    """Splits a block where its row indices leave a gap."""
    breaks = (np.flatnonzero(np.diff(rows) != 1) + 1).tolist()
    for start, stop in zip([0, *breaks], [*breaks, len(rows)], strict=True):
        yield int(rows[start]), cut_rows(block, start, stop)


def rows_per_slice(call: ScoreCall, completion: CompletionTask) -> int:
    """Rows of a slice, so that it holds about the call's `slice_bytes`."""
    return max(1, call.slice_bytes // call.wants.row_bytes(completion.candidates))


def _candidate_rows(candidates: Int32Array | None, first: int, count: int) -> Int32Array | None:
    if candidates is None:
        return None
    if candidates.shape[0] == 1:
        return np.broadcast_to(candidates, (count, candidates.shape[1]))
    return candidates[first : first + count]
