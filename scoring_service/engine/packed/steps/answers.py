"""What the head makes of a step's rows, as events for the calls that asked."""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor

from scoring_service.engine.events import CallEvent, ScoreSlice
from scoring_service.engine.model.causal_model import CausalModel
from scoring_service.engine.packed.calls.running_calls import RunningCalls
from scoring_service.engine.packed.calls.sample_run import SampleRun
from scoring_service.engine.packed.calls.score_run import CompletionRun, ScoreRows
from scoring_service.engine.packed.steps.head_jobs import draw_samples, score_rows
from scoring_service.errors import Fault


def answer_scores(
    model: CausalModel, states: Tensor, wanted: list[ScoreRows], calls: RunningCalls
) -> list[CallEvent]:
    """Slices of the completions that have rows in a step; what is at fault ends alone.

    Args:
        model: whose head it is.
        states: the step's table, [S, H].
        wanted: rows, those of one kind side by side.
        calls: that they belong to.
    """
    slices: list[ScoreSlice] = []
    version = model.weight_version
    touched: dict[CompletionRun, None] = {}
    failed: dict[CompletionRun, Fault] = {}
    for run, rows, found in score_rows(model.head, states, wanted, model.kernels):
        if run in failed:
            continue
        if isinstance(found, Fault):
            failed[run] = found
            continue
        touched[run] = None
        call = calls.by_id[run.call.call_id]
        call.usage = replace(call.usage, head_rows=call.usage.head_rows + found.rows)
        slices.extend(run.push(rows, found, version))
    for run in touched:
        if run not in failed:
            slices.extend(run.flush(version))
    for piece in slices:
        calls.by_id[piece.call_id].credit -= piece.size
    for run in touched:
        if run.done:
            calls.end_completion(calls.by_id[run.call.call_id], run)
    return [*slices, *(calls.fail_completion(run, fault) for run, fault in failed.items())]


def answer_draws(
    model: CausalModel,
    states: Tensor,
    wanted: list[tuple[SampleRun, int]],
    calls: RunningCalls,
) -> list[CallEvent]:
    """Slices of the samples that draw in a step.

    Args:
        model: whose head it is.
        states: the step's table, [S, H].
        wanted: samples with the place of their state.
        calls: that they belong to.
    """
    events: list[CallEvent] = []
    for sample, found in draw_samples(model.head, states, wanted, model.kernels):
        if isinstance(found, Fault):
            events.append(calls.fail_sample(sample, found))
            continue
        run = calls.by_id[sample.call.call_id]
        run.usage = replace(
            run.usage,
            head_rows=run.usage.head_rows + 1,
            sampled_tokens=run.usage.sampled_tokens + 1,
        )
        piece = sample.push(found, model.weight_version)
        if piece is not None:
            run.credit -= piece.size
            events.append(piece)
            if piece.last:
                calls.end_sample(run, sample)
    return events
