"""Updates of the weights with workers that do what a test tells them."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any

import pytest

from scoring_service.engine.events import (
    ApplyWeights,
    Command,
    DropWeights,
    StageWeights,
    WeightsDropped,
    WeightsFailed,
    WeightsStaged,
)
from scoring_service.errors import Reason, ServiceError
from scoring_service.pool.weight_receiver import TensorChunk
from scoring_service.pool.weight_status import Phase, Staging, UpdateOptions
from scoring_service.pool.weight_update import WeightUpdate
from scoring_service.types import TensorSpec
from tests.pool.scripted import INFO, Scripted, ScriptedExecutor, score_call, settled

MODEL = replace(INFO, tensors=(TensorSpec("w", "float32", (2,)),))
WHOLE = TensorChunk("w", "float32", (2,), 0, bytes(8))


class Stager(ScriptedExecutor):
    """A worker that takes weights, in its own way."""

    def __init__(self) -> None:
        super().__init__(MODEL)
        self.digest = "new"
        self.usable = True
        self.dies_applying = False
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
                else:
                    self.on_event(WeightsStaged(weights, self.digest, "n2", True))
            case DropWeights(weights):
                self.dropped.append(weights)
                self.on_event(WeightsDropped(weights))
            case _:
                super().send(command)


class Staged(Scripted):
    """A pool of them."""

    def _make(self, index: int) -> ScriptedExecutor:
        executor = Stager()
        self.prepare(executor)
        self.starts[index].append(executor)
        return executor


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


async def test_workers_that_read_different_weights() -> None:
    """None of them is taken."""
    scripted = await pool_of(2)
    scripted.workers[1].digest = "other"  # type: ignore[attr-defined]
    update = begun(scripted)
    assert await fault(update) is Reason.INTERNAL_ERROR
    assert scripted.pool.info.weight_version == 1
    await settled()
    for worker in scripted.workers:
        assert worker.dropped == [update.number]  # type: ignore[attr-defined]
    await scripted.pool.drain(0)


async def test_no_room_beside() -> None:
    """An error where it was asked for, else in place once running calls have ended."""

    def narrow(executor: Any) -> None:
        executor.usable = False

    scripted = await pool_of(2, narrow)
    assert await fault(begun(scripted, staging=Staging.BESIDE)) is Reason.OUT_OF_MEMORY
    pool = scripted.pool
    async with pool.run(score_call(pool.new_call_id(), [1, 2], 3)) as running:
        update = begun(scripted)
        committing = asyncio.create_task(update.commit())
        await settled()
        assert update.status.phase is Phase.DRAINING
        async with pool.run(score_call(pool.new_call_id(), [1, 2], 3)) as waiting:
            await settled()
            ((busy, part),) = [
                (w, call_id) for w in scripted.workers for call_id in w.calls
            ]  # the second call waits for the new weights
            assert not any(w.applied for w in scripted.workers)  # type: ignore[attr-defined]
            busy.score(part)
            await settled()
            await committing
            assert update.status.staging is Staging.IN_PLACE
            assert pool.info.weight_version == 2
            await settled()
            ((busy, part),) = [(w, call_id) for w in scripted.workers for call_id in w.calls]
            busy.score(part)
            await settled()
            assert waiting.ended
        assert running.ended
    await pool.drain(0)


async def test_weights_over_which_workers_die() -> None:
    """They are given up after the third time, and the old ones answer again."""

    def mortal(executor: Any) -> None:
        executor.dies_applying = True

    scripted = await pool_of(1, mortal)
    async with asyncio.timeout(5):
        assert await fault(begun(scripted, staging=Staging.IN_PLACE)) is Reason.WORKER_DIED
        while not scripted.pool.workers[0].is_ready:
            await scripted.pool.wait_changed()
    assert scripted.pool.info.weight_version == 1
    assert scripted.pool.workers[0].weights == {0}
    pool = scripted.pool
    async with pool.run(score_call(pool.new_call_id(), [1, 2], 3)) as stream:
        await settled()
        (part,) = scripted.workers[0].calls
        scripted.workers[0].score(part)
        await settled()
        assert stream.ended
    await pool.drain(0)


async def test_a_worker_that_cannot_stage() -> None:
    """The update fails everywhere; memory that is missing is named as such."""
    for message, reason in (
        ("OSError: gone", Reason.INTERNAL_ERROR),
        ("MemoryError: ", Reason.OUT_OF_MEMORY),
    ):
        scripted = await pool_of(2)
        scripted.workers[1].fails = message  # type: ignore[attr-defined]
        assert await fault(begun(scripted)) is reason
        assert scripted.pool.weights.update is None
        await scripted.pool.drain(0)


async def test_a_worker_that_comes_back_with_other_weights() -> None:
    """It is not let in, however often it is started."""
    scripted = await pool_of(2)
    await begun(scripted).commit()

    def changed(executor: Any) -> None:
        executor.digest = "other"

    scripted.prepare = changed
    scripted.workers[0].die()
    async with asyncio.timeout(5):
        while len(scripted.starts[0]) < 3:
            await scripted.pool.wait_changed()
    assert not scripted.pool.workers[0].is_ready
    scripted.prepare = lambda _executor: None
    async with asyncio.timeout(5):
        while not scripted.pool.workers[0].is_ready:
            await scripted.pool.wait_changed()
    number = scripted.pool.weights.current.number
    assert scripted.pool.workers[0].weights == {number}
    assert scripted.workers[0].applied == [number]  # type: ignore[attr-defined]
    await scripted.pool.drain(0)


async def test_memory_is_used_again() -> None:
    """The third update is written where the first was, once no call needs that."""
    scripted = await pool_of(1)
    pool = scripted.pool
    await begun(scripted, 2).commit()
    first = pool.weights.current.memory
    await begun(scripted, 3).commit()
    await settled()
    async with pool.run(score_call(pool.new_call_id(), [1, 2], 3)):
        await settled()
        await begun(scripted, 4).commit()
        assert pool.weights.current.memory is first
        assert [held.info.weight_version for held in pool.weights.generations.older] == [3]
        (part,) = scripted.workers[0].calls
        scripted.workers[0].score(part)
        await settled()
        assert not pool.weights.generations.older
    await pool.drain(0)
