"""The plain path of scoring: one completion a forward pass, its rows in slices as tiles finish."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from scoring_service.engine.events import ScoreSlice
from scoring_service.engine.head.tiles import plain_tile_rows
from scoring_service.engine.model.causal_model import CausalModel
from scoring_service.engine.outputs.row_slices import (
    Run,
    contiguous_runs,
    realised_ids,
    rows_per_slice,
    slice_runs,
    wanted_rows,
)
from scoring_service.engine.outputs.rows import block_bytes, compute_rows, cut_rows
from scoring_service.kernels import dispatch
from scoring_service.types import CompletionTask, GroupTask, Int32Array, ScoreCall


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
            [group.processing] * len(tile_indices),
            call.wants,
            _candidate_rows(completion.candidate_ids, first, len(tile_indices)),
        )
        block = cut_rows(block, 0, block.rows, next_token=bool(realised[-1] < 0))
        yield from contiguous_runs(tile_indices, block)


def _candidate_rows(candidates: Int32Array | None, first: int, count: int) -> Int32Array | None:
    if candidates is None:
        return None
    if candidates.shape[0] == 1:
        return np.broadcast_to(candidates, (count, candidates.shape[1]))
    return candidates[first : first + count]
