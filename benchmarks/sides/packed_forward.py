"""The packed forward and the head's product alone: what scheduler and head passes add to them."""

from __future__ import annotations

import time
from dataclasses import dataclass
from unittest import mock

import torch

from benchmarks.outcome import Outcome
from benchmarks.sides import SideConfig
from benchmarks.sides.engine import Engine
from benchmarks.workloads import Mixed, Work
from scoring_service.engine.attention.segments import Segment, SlotArray
from scoring_service.engine.events import SampleSlice, ScoreSlice
from scoring_service.engine.head.tiles import tile_rows
from scoring_service.engine.outputs import sample_slices
from scoring_service.engine.packed.engine import PackedEngine
from scoring_service.engine.packed.steps.body import PackedBody, Step, StepStates


@dataclass(frozen=True)
class Recorded:
    """A step of the engine."""

    step: Step
    rows: int
    """That it sends through the head."""
    places: tuple[tuple[Segment, SlotArray, int], ...]
    """Of the segments that it computes or continues: where their keys were kept, and how many of
    their tokens were computed."""

    def put_back(self) -> None:
        """Its segments are as they were: others have their pages since, and they are done."""
        for segment, slots, done in self.places:
            segment.slots, segment.done = slots, done


class PackedForward:
    """Runs the steps that the engine makes of the work through the body again, and nothing else.

    The engine does the work first, unmeasured; its steps are kept. What is measured is
    `PackedBody.run` of each, and the head's product over as many rows, a tile at a time. Which rows
    and what is in the pages does not matter: the numbers are thrown away.
    """

    def __init__(self, config: SideConfig) -> None:
        self._engine = Engine(config)
        runner = self._engine.runner
        if not isinstance(runner, PackedEngine):
            raise ValueError(f"there is nothing packed: {self._engine.info.path_reason}")
        self._runner = runner
        self.version = self._engine.version
        self.pids: dict[str, int] = {}
        self.backend = self._engine.backend

    def run(self, work: Work) -> Outcome:
        """Does the arithmetic."""
        if isinstance(work, Mixed):
            raise NotImplementedError
        steps = self._record(work)
        model, body = self._runner._model, self._runner._body
        head = model.head
        tile = tile_rows(head.vocab_size, head.dtype.itemsize, model.device.type)
        began = time.perf_counter()
        with torch.inference_mode():
            for recorded in steps:
                recorded.put_back()
                rows, states_T_H = recorded.rows, body.run(recorded.step).states_T_H
                for first in range(0, min(rows, len(states_T_H)), tile):
                    head.product(states_T_H[first : min(first + tile, rows)])
        if model.device.type != "cpu":
            torch.cuda.synchronize()
        return Outcome(time.perf_counter() - began)

    def _record(self, work: Work) -> list[Recorded]:
        """The steps of the work, done once by the engine."""
        steps: list[tuple[Step, tuple[tuple[Segment, SlotArray, int], ...]]] = []
        rows: list[int] = []
        run = PackedBody.run
        advance = PackedEngine.step

        def keep(body: PackedBody, step: Step) -> StepStates:
            chained = {s for piece in step.pieces for s in piece.segment.chain()}
            steps.append((step, tuple((s, s.slots, s.done) for s in chained)))
            return run(body, step)

        def count(engine: PackedEngine) -> list:
            events = advance(engine)
            scored = sum(e.block.rows for e in events if isinstance(e, ScoreSlice))
            drawn = sum(len(e.token_ids) for e in events if isinstance(e, SampleSlice))
            if len(steps) > len(rows):
                rows.append(scored + drawn)
            return events

        with (
            mock.patch.object(PackedBody, "run", keep),
            mock.patch.object(PackedEngine, "step", count),
            mock.patch.object(sample_slices, "_FLUSH_SECONDS", 0.0),
        ):
            self._engine.run(work)
        return [
            Recorded(step, count, places) for (step, places), count in zip(steps, rows, strict=True)
        ]

    def close(self) -> None:
        """Nothing to end."""


def make(config: SideConfig) -> PackedForward:
    """Loads it."""
    return PackedForward(config)
