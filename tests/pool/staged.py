"""Workers that take weights as a test tells them, and updates of these."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from scoring_service.engine.events import (
    ApplyWeights,
    Command,
    DropWeights,
    FillWeights,
    StageWeights,
    WeightsDropped,
    WeightsFailed,
    WeightsFilled,
    WeightsStaged,
)
from scoring_service.errors import Reason, ServiceError
from scoring_service.pool.weights.receiver import TensorChunk
from scoring_service.pool.weights.status import UpdateOptions
from scoring_service.pool.weights.update import WeightUpdate
from scoring_service.types import TensorSpec
from tests.pool.scripted import INFO, Scripted, ScriptedExecutor

MODEL = replace(INFO, tensors=(TensorSpec("w", "float32", (2,)),))
WHOLE = TensorChunk("w", "float32", (2,), 0, bytes(8))


class Stager(ScriptedExecutor):
    """A worker that takes weights, in its own way."""

    def __init__(self) -> None:
        super().__init__(MODEL)
        self.digest = "new"
        self.usable = True
        self.dies_applying = False
        self.applies = True
        self.fills = True
        self.asked: list[int] = []
        self.fails: str | None = None
        self.dropped: list[int] = []
        self.applied: list[int] = []

    def send(self, command: Command) -> None:
        match command:
            case StageWeights(weights):
                if self.fails is not None:
                    self.on_event(WeightsFailed(weights, self.fails))
                else:
                    usable = self.usable and command.beside
                    self.on_event(WeightsStaged(weights, self.digest, "n2", usable))
            case ApplyWeights(weights):
                self.applied.append(weights)
                if self.dies_applying:
                    self.die()
                elif self.applies:
                    self.on_event(WeightsStaged(weights, self.digest, "n2", True))
            case FillWeights(weights):
                self.asked.append(weights)
                if self.fills:
                    self.on_event(WeightsFilled(weights))
            case DropWeights(weights):
                self.dropped.append(weights)
                self.on_event(WeightsDropped(weights))
            case _:
                super().send(command)


class Staged(Scripted):
    """A pool of them."""

    make_executor = Stager


async def pool_of(count: int, prepare: Any = None) -> Staged:
    scripted = Staged(count)
    scripted.prepare = prepare or scripted.prepare
    await scripted.start()
    return scripted


def begun(scripted: Staged, version: int = 2, **options: Any) -> WeightUpdate:
    """An update whose tensors came."""
    update = scripted.pool.weights.begin(UpdateOptions(version, **options), "")
    update.take(WHOLE, "chunk")
    return update


async def fault(update: WeightUpdate) -> Reason:
    """Why it fails."""
    with pytest.raises(ServiceError) as caught:
        await update.commit()
    return caught.value.fault.reason
