"""The sets of weights that a pool's workers have: the running one, and older ones still needed."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field

from scoring_service.engine.events import LOADED, DropWeights
from scoring_service.engine.machine.host_memory import free_host_memory
from scoring_service.engine.weight_memory import Layout, WeightMemory, WriterState
from scoring_service.errors import Fault, Reason, ServiceError
from scoring_service.pool.workers.worker import Worker
from scoring_service.types import EngineInfo

_SPARE = 1.1
"""Memory is taken if so many times its size is free."""


@dataclass(eq=False, slots=True)
class WeightSet:
    """All weights of the model, under one number."""

    number: int
    info: EngineInfo
    """The model with them."""
    memory: WeightMemory | None = None
    """None = workers load them from the model's files."""
    layout: Layout | None = None
    uses: int = 0
    """Parts that are computed with them, and calls that insist on them."""


@dataclass(slots=True)
class WeightSets:
    """Keeps older weights while they are used, and memory for the next ones."""

    workers: list[Worker]
    current: WeightSet | None = None
    """What calls begin with; None until a worker has loaded the model."""
    _alive: dict[int, WeightSet] = field(default_factory=dict)
    _letting_go: dict[int, tuple[WeightMemory | None, set[int]]] = field(default_factory=dict)
    """Number -> memory, and the workers that may still read it."""
    _spare: WeightMemory | None = None

    def begin(self, info: EngineInfo) -> None:
        """The model was loaded, or another one when all workers started again."""
        uses = self._alive[LOADED].uses if LOADED in self._alive else 0
        self.current = self._alive[LOADED] = WeightSet(LOADED, info, uses=uses)

    def find(self, number: int) -> WeightSet | None:
        """The weights of that number, if they are still held."""
        return self._alive.get(number)

    @property
    def older(self) -> list[WeightSet]:
        """Weights that are held beside the running ones, oldest first."""
        return [held for held in self._alive.values() if held is not self.current]

    def promote(self, weight_set: WeightSet) -> None:
        """Calls begin with these from now on."""
        self.current = self._alive[weight_set.number] = weight_set
        self.release_unused()

    def check_version(self, version: int, digest: str) -> None:
        """Refuses weights under a version that names others, which answer or are in use.

        Raises:
            ServiceError: WEIGHT_VERSION_NOT_NEWER.
        """
        for held in self._alive.values():
            if held.info.weight_version == version and held.info.weights_digest != digest:
                how = "running" if held is self.current else "still in use"
                message = (
                    f"version {version} is {how} with the digest {held.info.weights_digest}, and "
                    f"these weights have {digest}: one version cannot name both"
                )
                raise ServiceError(Fault(Reason.WEIGHT_VERSION_NOT_NEWER, message))

    def hold(self, number: int) -> None:
        """Something needs these weights."""
        self._alive[number].uses += 1

    def release(self, number: int) -> None:
        """It needs them no more."""
        weight_set = self._alive.get(number)
        if weight_set is not None:
            weight_set.uses -= 1
            if not weight_set.uses and weight_set is not self.current:
                self.release_unused()

    def release_unused(self) -> None:
        """Lets go of older weights that nothing needs."""
        for weight_set in self.older:
            if not weight_set.uses:
                del self._alive[weight_set.number]
                self.drop(weight_set.number, weight_set.memory)

    def drop(self, number: int, memory: WeightMemory | None) -> None:
        """Has workers forget weights; their memory is free once all have."""
        readers = set()
        for worker in self.workers:
            if number in worker.weights or number in worker.staging:
                readers.add(worker.index)
                worker.weights.discard(number)
                worker.staging.discard(number)
                worker.send(DropWeights(number))
        self._letting_go[number] = memory, readers
        self._settle(number)

    def dropped(self, worker: Worker, number: int) -> None:
        """A worker reads these weights no more."""
        if number in self._letting_go:
            self._letting_go[number][1].discard(worker.index)
            self._settle(number)

    def worker_lost(self, worker: Worker) -> None:
        """It reads nothing any more."""
        worker.weights.clear()
        worker.staging.clear()
        for number in list(self._letting_go):
            self.dropped(worker, number)

    def take_memory(self, size: int, used: int) -> WeightMemory:
        """Memory for the next weights: the last that became free, if it suits.

        Args:
            size: of the memory.
            used: how much of it will be written, about.

        Raises:
            ServiceError: OUT_OF_MEMORY.
        """
        spare, self._spare = self._spare, None
        free = free_host_memory()
        if spare is not None:
            if size <= spare.size <= 2 * size:
                spare.publish(0)
                return spare
            free += spare.taken
            _discard(spare)
        if used * _SPARE > free:
            message = f"the weights take {used >> 20} MiB, and {free >> 20} MiB of memory are free"
            raise ServiceError(Fault(Reason.OUT_OF_MEMORY, message))
        return WeightMemory(size)

    def close(self) -> None:
        """Gives all memory up; workers are gone."""
        memories = [held.memory for held in self._alive.values()]
        memories += [memory for memory, _ in self._letting_go.values()]
        for memory in [*memories, self._spare]:
            if memory is not None:
                memory.close()
        self._alive.clear()
        self._letting_go.clear()
        self._spare = None

    def abandon(self, number: int, memory: WeightMemory, *, reusable: bool) -> None:
        """Weights that will not be written to their end.

        Args:
            number: of the weights.
            memory: they were to be in.
            reusable: False while another process may write into it for a moment still.
        """
        memory.publish(0, WriterState.ABANDONED)
        if reusable:
            self.drop(number, memory)
        else:
            self.drop(number, None)
            memory.close()

    def _settle(self, number: int) -> None:
        memory, readers = self._letting_go[number]
        if readers:
            return
        del self._letting_go[number]
        if memory is None:
            return
        # The next update writes where pages are there already, which saves touching new ones.
        if self._spare is not None:
            _discard(self._spare)
        self._spare = memory


def _discard(memory: WeightMemory) -> None:
    """Gives memory up in a thread: to free a GiB of pages takes a quarter of a second."""
    threading.Thread(target=memory.discard, name="discard", daemon=True).start()
