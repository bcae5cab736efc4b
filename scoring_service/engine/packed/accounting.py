"""Who a step's tokens and time were spent on."""

from __future__ import annotations

from dataclasses import replace

from scoring_service.engine.attention.segments import Segment
from scoring_service.engine.packed.calls.call_run import CallRun
from scoring_service.engine.packed.calls.running_calls import RunningCalls
from scoring_service.engine.packed.planning.step_plan import StepPlan


class PromptCounter:
    """Counts a call's prompts as they begin."""

    run: CallRun

    def __call__(self, chain: list[Segment]) -> None:
        """Takes the chain of a prompt, before anything of it is computed for this call."""
        usage = self.run.usage
        self.run.usage = replace(
            usage,
            prompt_tokens=usage.prompt_tokens + chain[-1].stop,
            cached_tokens=usage.cached_tokens
            + sum(len(segment.token_ids) for segment in chain if segment.computed),
        )


def account(plan: StepPlan, seconds: float, calls: RunningCalls) -> None:
    """Shares a step's tokens and time among the calls that it served."""
    left = {id(piece.segment): piece.tokens for piece in plan.pieces}
    tokens: dict[int, int] = {}
    weights: dict[int, int] = {}
    for run, unit in plan.units:
        computed = 0 if unit.segment is None else left.pop(id(unit.segment), 0)
        tokens[run.call.call_id] = tokens.get(run.call.call_id, 0) + computed
        weights[run.call.call_id] = weights.get(run.call.call_id, 0) + max(1, computed)
    for run, _, _ in plan.decode_tokens:
        tokens[run.call.call_id] = tokens.get(run.call.call_id, 0) + 1
        weights[run.call.call_id] = weights.get(run.call.call_id, 0) + 1
    total = sum(weights.values())
    for call_id, weight in weights.items():
        if (found := calls.by_id.get(call_id)) is not None:
            found.usage = replace(
                found.usage,
                computed_tokens=found.usage.computed_tokens + tokens[call_id],
                compute_seconds=found.usage.compute_seconds + seconds * weight / total,
            )
