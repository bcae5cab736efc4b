"""A pool whose workers are engines that compute, and that die while they do.

Random calls of every kind; readers that pause, leave, or insist on their weights; updates beside
the running weights and over them, whatever becomes of samples. Every number is that of a plain
forward of the weights that its slice names. Engines take turns with everybody else in one thread.
"""

from __future__ import annotations

import asyncio
import contextlib
import queue
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pytest
import torch

from scoring_service.engine.events import (
    LOADED,
    CallFailed,
    CallFinished,
    Command,
    FlushCache,
    ItemFailed,
    Ready,
    SampleSlice,
    ScoreSlice,
    Shutdown,
    WeightsChanged,
)
from scoring_service.engine.loading.loader import LoadedModel
from scoring_service.engine.packed.engine import PackedEngine
from scoring_service.engine.updates.weight_store import WeightStore
from scoring_service.engine.weights.model_weights import ModelWeights
from scoring_service.engine.worker.service_loop import obey
from scoring_service.errors import Reason, ServiceError
from scoring_service.pool.pool import WorkerPool
from scoring_service.pool.settings import PoolSettings
from scoring_service.pool.weights.receiver import TensorChunk
from scoring_service.pool.weights.status import RunningSamples, Staging, UpdateOptions
from scoring_service.pool.workers.executor import OnEvent, WorkerExited
from scoring_service.pool.workers.readiness import PoolState
from scoring_service.types import Call, ScoreCall
from tests.engine import plain
from tests.engine.driving import engine_of
from tests.engine.expected import Truth
from tests.engine.loading import load_model
from tests.engine.other_weights import other_weights, plain_network
from tests.engine.random_calls import RandomCalls
from tests.engine.small_models import ARCHITECTURES, save_model
from tests.engine.soundness import assert_sound
from tests.intensity import short_or_long
from tests.pool.scripted import until_state

_VERSIONS = 8
_CHUNK = 32
_WORKERS = 2


@dataclass(frozen=True)
class Models:
    """A small model for each worker, and what it may be updated to."""

    loaded: list[LoadedModel]
    own: list[ModelWeights]
    versions: list[ModelWeights]
    truth: Truth


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Models:
    (found,) = (a for a in ARCHITECTURES if a.name == "gemma3")
    settings = {**found.settings, "max_position_embeddings": 512, "tie_word_embeddings": True}
    folder = save_model(replace(found, settings=settings), tmp_path_factory.mktemp("pool"))
    loaded = [load_model(folder, dtype="float32", chunk_size=_CHUNK) for _ in range(_WORKERS)]
    own = [each.model.weights for each in loaded if each.model.weights is not None]
    versions = [own[0], *(other_weights(loaded[0], version) for version in range(1, _VERSIONS))]
    network = plain.load(folder, torch.float32)
    networks = {weights.version: plain_network(network, weights) for weights in versions}
    return Models(loaded, own, versions, Truth(networks, 2e-4))


class EngineExecutor:
    """A worker in the event loop: commands, then a step, by turns with everybody else."""

    def __init__(
        self,
        loaded: LoadedModel,
        own: ModelWeights,
        engine: PackedEngine,
        errors: list[Exception],
    ) -> None:
        self._errors = errors
        self._loaded = loaded
        self._own = own
        self._engine = engine
        self._commands: queue.SimpleQueue[Command] = queue.SimpleQueue()
        self._task: asyncio.Task[None] | None = None

    def start(self, on_event: OnEvent) -> None:
        self._on_event = on_event
        self._loaded.model.use(self._own)
        self._store = WeightStore(self._loaded, on_event)
        on_event(Ready(self._loaded.info))
        self._task = asyncio.create_task(self._work())

    def send(self, command: Command) -> None:
        self._commands.put(command)

    def kill(self) -> None:
        if self._task is not None:
            self._task.cancel()
            self._task = None
            self._on_event(WorkerExited("SIGKILL", from_outside=True))

    def stop(self, timeout: float) -> None:
        self.send(Shutdown())

    async def _work(self) -> None:
        try:
            while self._obey_all():
                if self._engine.can_step:
                    for event in self._engine.step():
                        self._on_event(event)
                    assert_sound(self._engine)
                await asyncio.sleep(0 if self._engine.can_step else 0.001)
        except Exception as error:
            self._errors.append(error)
            self._on_event(WorkerExited("a bug"))
            raise

    def _obey_all(self) -> bool:
        """Whether it is not to end."""
        while not self._commands.empty():
            command = self._commands.get()
            if not obey(self._engine, self._store, command, self._on_event, _raise):
                return False
        return True


def _raise(_call: Call, error: BaseException) -> None:
    raise error


@dataclass
class Read:
    """What came of a call."""

    call: Call
    slices: dict[tuple[int, int], list[Any]] = field(default_factory=dict)
    failed: set[tuple[int, int | None]] = field(default_factory=set)
    end: str = ""


class Pool:
    """The pool, its callers, and what befalls it."""

    def __init__(self, models: Models, rng: np.random.Generator) -> None:
        self._models = models
        self._rng = rng
        self.executors: dict[int, EngineExecutor] = {}
        self.happened: dict[str, int] = {}
        settings = PoolSettings(
            workers=_WORKERS, max_queue_tokens=1 << 20, first_backoff=0.01, look_seconds=0.05
        )
        self.pool = WorkerPool(self._make, settings, "any")
        self.reads: list[Read] = []
        self.errors: list[Exception] = []
        """Of engines."""

    def _make(self, index: int) -> EngineExecutor:
        engine = engine_of(
            self._models.loaded[index],
            pages=40 + int(self._rng.choice([0, 10, 60])),
            max_batch_tokens=int(self._rng.choice([32, 100])),
            beside_samples=int(self._rng.choice([8, 28])),
        )
        loaded, own = self._models.loaded[index], self._models.own[index]
        self.executors[index] = EngineExecutor(loaded, own, engine, self.errors)
        return self.executors[index]

    def count(self, what: str) -> None:
        self.happened[what] = self.happened.get(what, 0) + 1

    async def run(self, make_call: Callable[[int], Call], calls: int) -> None:
        self.pool.start()
        await until_state(self.pool, PoolState.READY)
        befalls = asyncio.create_task(self._befall())
        try:
            async with asyncio.timeout(120), asyncio.TaskGroup() as group:
                for _ in range(calls):
                    call = make_call(self.pool.new_call_id())
                    group.create_task(self._read(call))
                    await asyncio.sleep(float(self._rng.choice([0, 0, 0.05])))
        finally:
            befalls.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await befalls
        await self.pool.drain(5.0)
        for error in self.errors:
            raise error

    async def _read(self, call: Call) -> None:
        read = Read(call)
        self.reads.append(read)
        await until_state(self.pool, PoolState.READY)
        running = self.pool.info.weight_version
        insists = self._rng.random() < 0.2
        told: int | None = None
        try:
            async with self.pool.run(
                call,
                accepts=(lambda info: info.weight_version == running) if insists else None,
            ) as stream:
                while not read.end:
                    event = await stream.next(60.0)
                    assert event is not None, "nothing comes"
                    told = self._note(read, event, told)
                    if isinstance(event, ScoreSlice | SampleSlice):
                        assert not insists or event.weight_version == running
                        if self._rng.random() < 0.1:
                            await asyncio.sleep(0.01)
                        stream.taken(event.size)
                    if not read.end and self._rng.random() < 0.005:
                        read.end = "left"
        except ServiceError as error:
            # Workers, or the weights that it insists on, went before it was let in.
            if error.fault.reason not in (Reason.LOADING, Reason.WEIGHT_VERSION_MISMATCH):
                raise
            read.end = str(error.fault.reason)
        self.count(read.end)

    def _note(self, read: Read, event: Any, told: int | None) -> int | None:
        match event:
            case WeightsChanged(info):
                return info.weight_version
            case ScoreSlice():
                item = event.group_index, event.completion_index
                read.slices.setdefault(item, []).append(event)
            case SampleSlice():
                item = event.prompt_index, event.sample_index
                read.slices.setdefault(item, []).append(event)
            case ItemFailed(_, index, part, fault):
                assert fault.reason is Reason.WEIGHTS_REPLACED
                read.failed.add((index, part))
            case CallFinished():
                read.end = "answered"
            case CallFailed(_, fault):
                assert fault.reason in (Reason.WORKER_DIED, Reason.WEIGHT_VERSION_MISMATCH), fault
                read.end = str(fault.reason)
        if isinstance(event, ScoreSlice | SampleSlice):
            assert told is None or event.weight_version == told
        return told

    async def _befall(self) -> None:
        version = LOADED
        while True:
            await asyncio.sleep(float(self._rng.exponential(0.06)))
            chance = self._rng.random()
            if chance < 0.3:
                self.count("killed")
                self.executors[int(self._rng.integers(_WORKERS))].kill()
            elif chance < 0.7 and version + 1 < _VERSIONS and self.pool.takes_updates:
                version += 1
                await self._update(version)
            elif chance < 0.8:
                for executor in self.executors.values():
                    executor.send(FlushCache())

    async def _update(self, version: int) -> None:
        policy = RunningSamples(self._rng.choice(["finish", "continue", "continue", "abort"]))
        staging = Staging(self._rng.choice(["beside", "in_place", "auto"]))
        options = UpdateOptions(version, running_samples=policy, staging=staging)
        update = self.pool.weights.begin(options, "")
        for name, tensor in self._models.versions[version].tensors.items():
            data = tensor.contiguous().numpy().tobytes()
            update.take(TensorChunk(name, "float32", tuple(tensor.shape), 0, data), name)
        try:
            await update.commit()
            self.count(f"{policy} {staging}")
            if self._rng.random() < 0.5:
                # What it has goes on elsewhere, with the weights that it began with.
                self.count("killed")
                self.executors[int(self._rng.integers(_WORKERS))].kill()
        except ServiceError as error:
            self.count(f"update failed: {error.fault.reason}")


def check(read: Read, models: Models, rng: np.random.Generator) -> int:
    """Numbers of a call that was answered; how many rows it has."""
    call, rows = read.call, 0
    if isinstance(call, ScoreCall):
        assert not read.failed
        for group in call.groups:
            for completion in group.completions:
                slices = read.slices[group.index, completion.index]
                rows += models.truth.check_completion(call, group, completion, slices)
        return rows
    eos_ids = models.loaded[0].info.eos_token_ids
    for of_one in call.prompts:
        for index in of_one.sample_indices:
            if (of_one.index, index) in read.failed:
                continue
            slices = read.slices[of_one.index, index]
            rows += models.truth.check_sample(call, of_one, index, slices, eos_ids, rng)
    return rows


@pytest.mark.parametrize("seed", range(int(short_or_long(2, 100))))
async def test_every_number_is_that_of_a_plain_forward(models: Models, seed: int) -> None:
    made = RandomCalls(seed, models.loaded[0].info.vocab_size, _CHUNK, texts=False)
    around = Pool(models, made.rng)
    await around.run(made.call, calls=50)
    answered = [read for read in around.reads if read.end == "answered"]
    assert sum(check(read, models, made.rng) for read in answered)
    models.truth.forget()
    assert around.pool.queued_tokens == 0
    assert not around.pool.weights.weight_sets.older
