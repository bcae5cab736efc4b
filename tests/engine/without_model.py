"""A packed engine whose steps compute nothing: who gets room and turns, without a model."""

from __future__ import annotations

from typing import Any, cast

import numpy as np
import torch

from scoring_service.engine.attention.pages import PagePool
from scoring_service.engine.attention.segments import Segment
from scoring_service.engine.events import CallEvent, CallFinished
from scoring_service.engine.model.causal_model import CausalModel
from scoring_service.engine.outputs.sample_slices import DrawnToken
from scoring_service.engine.packed.calls.score_run import CompletionRun
from scoring_service.engine.packed.engine import PackedEngine
from scoring_service.engine.packed.planning.step_plan import StepPlan
from scoring_service.engine.packed.settings import PackedSettings
from scoring_service.types import (
    CompletionTask,
    GroupTask,
    Processing,
    RowWants,
    SampleCall,
    SamplingTask,
    ScoreCall,
)
from tests.engine.soundness import assert_sound

_RNG = np.random.default_rng(3)
_STATE = torch.empty(0)
"""Of the last token of what others may continue: nobody reads it."""


class _Nothing:
    device = torch.device("cpu")


class EngineWithoutModel(PackedEngine):
    """Answers every row and draws token 1, at once."""

    def __init__(self, pages: int, **settings: Any) -> None:
        fields = {"chunk_size": 64, "max_batch_tokens": 256, **settings}
        super().__init__(
            cast(CausalModel, _Nothing()),
            PagePool([], pages, torch.float32, torch.device("cpu")),
            PackedSettings(**fields),
            eos_ids=(),
            codec=None,
            root_key=b"test",
            log_bug=_raise,
        )
        self.steps = 0

    def _compute(self, plan: StepPlan) -> list[CallEvent]:
        self.steps += 1
        for piece in plan.pieces:
            piece.segment.done = piece.stop
            if piece.segment.computed:
                piece.segment.end_state = _STATE
        for run, unit in plan.units:
            if unit.completion is not None and _is_answered(unit.completion, unit.segment):
                self._calls.end_completion(run, unit.completion)
        begun = [(run, unit.sample) for run, unit in plan.units if unit.sample is not None]
        others = {id(sample): (run, sample) for run, sample, _ in plan.decode_tokens}
        for run, sample in [*begun, *others.values()]:
            if sample.can_draw:
                piece = sample.push(DrawnToken(1, 0.0, 0.0, (), ()), 0)
                if piece is not None and piece.last:
                    self._calls.end_sample(run, sample)
        return []

    def run(self, steps: int) -> list[int]:
        """Calls that end within so many steps."""
        ended = []
        for _ in range(steps):
            if not self.can_step:
                break
            ended += [e.call_id for e in self.step() if isinstance(e, CallFinished)]
            if self.steps % 16 == 0:
                assert_sound(self)
        return ended


def score(
    call_id: int,
    prompt: int,
    *completions: int,
    groups: int = 1,
    priority: int = 0,
    rows: int | None = None,
) -> ScoreCall:
    """Groups of prompts that nobody shares, by lengths; of each completion its first `rows`."""
    made = tuple(
        GroupTask(
            index,
            _ids(prompt),
            tuple(
                CompletionTask(place, _ids(length), ((0, min(length, rows or length)),))
                for place, length in enumerate(completions)
            ),
            Processing(),
            0,
        )
        for index in range(groups)
    )
    return ScoreCall(call_id, made, RowWants(), priority=priority)


def sample(call_id: int, prompt: int, max_tokens: int, n: int = 1, priority: int = 0) -> SampleCall:
    """One prompt that nobody shares, by its length, whose samples have all their tokens."""
    task = SamplingTask(0, _ids(prompt), n, 1, 0, Processing(), 0, max_tokens, ignore_eos=True)
    return SampleCall(call_id, (task,), priority=priority)


def _is_answered(completion: CompletionRun, segment: Segment | None) -> bool:
    """Whether the states of all wanted rows are computed. Row i comes from token i - 1."""
    here = completion.prompt_end if segment is None else segment
    return here.start + here.done >= completion.prompt_end.stop + int(completion.rows[-1])


def _ids(length: int) -> np.ndarray:
    return _RNG.integers(0, 2000, length, dtype=np.int32)


def _raise(_call: object, error: BaseException) -> None:
    raise error
