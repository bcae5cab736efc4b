"""What one step does."""

from __future__ import annotations

from dataclasses import dataclass, field

from scoring_service.engine.attention.segments import DecodeToken, SegmentRange
from scoring_service.engine.packed.calls.call_run import CallRun, Unit
from scoring_service.engine.packed.calls.sample_run import SampleRun
from scoring_service.engine.weights.model_weights import ModelWeights


@dataclass(slots=True)
class StepPlan:
    """Units and tokens of samples, all of calls that run on the same weights."""

    weights: ModelWeights | None = None
    """What it is computed with; None = whatever the model has."""
    units: list[tuple[CallRun, Unit]] = field(default_factory=list)
    pieces: list[SegmentRange] = field(default_factory=list)
    """What the units need computed, of each segment once."""
    decode_tokens: list[tuple[CallRun, SampleRun, DecodeToken]] = field(default_factory=list)

    @property
    def is_empty(self) -> bool:
        """Whether there is nothing to do."""
        return not self.units and not self.decode_tokens

    def calls(self) -> list[CallRun]:
        """Those that have a part in it, once each."""
        runs = [run for run, _ in self.units] + [run for run, _, _ in self.decode_tokens]
        return list({run.call.call_id: run for run in runs}.values())
