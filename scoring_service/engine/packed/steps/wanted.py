"""Which rows of a step's states the head has to answer."""

from __future__ import annotations

from scoring_service.engine.packed.calls.running_calls import RunningCalls
from scoring_service.engine.packed.calls.sample_run import SampleRun
from scoring_service.engine.packed.calls.score_run import ScoreRows
from scoring_service.engine.packed.planning.step_plan import StepPlan
from scoring_service.engine.packed.steps.grouping import grouped_by_kind
from scoring_service.engine.packed.steps.head_jobs import score_kind
from scoring_service.engine.packed.steps.state_table import StateTable


def rows_to_score(plan: StepPlan, table: StateTable, calls: RunningCalls) -> list[ScoreRows]:
    """Rows of completions, those of one kind side by side."""
    wanted = []
    for _, unit in plan.units:
        run = unit.completion
        if run is None or run not in calls.by_id[run.call.call_id].completions:
            continue
        row, piece = (0, None) if unit.segment is None else table.piece_of(unit.segment)
        if piece is None or piece.start == run.prompt_end.stop:
            rows = run.rows_of(None)
            if len(rows):
                wanted.append(ScoreRows(run, rows, [table.end_of(run.prompt_end)]))
        if piece is not None:
            rows = run.rows_of(piece)
            if len(rows):
                # Row i comes from the state one position earlier.
                offset = row - 1 - (piece.start - run.prompt_end.stop)
                wanted.append(ScoreRows(run, rows, (offset + rows).tolist()))
    return grouped_by_kind(wanted, score_kind)


def samples_to_draw(
    plan: StepPlan, table: StateTable, first_decode_row: int
) -> list[tuple[SampleRun, int]]:
    """Samples that draw their next token, each with the place of the state that it comes from.

    Args:
        plan: the step.
        table: its states.
        first_decode_row: row of the step's first decoded token.
    """
    places = {}
    for _, unit in plan.units:
        if unit.sample is not None and unit.sample.can_draw:
            places[unit.sample] = table.end_of(unit.sample.prompt_end)
    for place, (_, sample, _) in enumerate(plan.decode_tokens, first_decode_row):
        if sample.can_draw:
            places[sample] = place  # of its last token
    return list(places.items())
