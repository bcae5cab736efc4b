"""One update of the weights, from its first byte to its commit."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, replace

import structlog

from scoring_service.engine.events import (
    WeightEvent,
    WeightsFailed,
    WeightsFilled,
    WeightsStaged,
)
from scoring_service.errors import Fault, Reason, ServiceError
from scoring_service.pool.weights import phase_limits
from scoring_service.pool.weights.filling import WeightFilling
from scoring_service.pool.weights.owner import WeightOwner
from scoring_service.pool.weights.receiver import TensorChunk
from scoring_service.pool.weights.sets import WeightSet, WeightSets
from scoring_service.pool.weights.staging import WorkerStaging, check_digest
from scoring_service.pool.weights.status import (
    ENDED,
    Phase,
    Staging,
    UpdateOptions,
    UpdateStatus,
)
from scoring_service.pool.workers.worker import Worker
from scoring_service.types import EngineConfig, EngineInfo

log = structlog.get_logger(__name__)

_MAX_DEATHS = 3
"""Deaths of workers while they take the weights, after which it is not tried again."""


@dataclass(frozen=True, slots=True)
class Destination:
    """Where the weights of an update go."""

    owner: WeightOwner
    weight_sets: WeightSets
    base: WeightSet
    """The weights that they follow."""
    ended: Callable[[WeightUpdate], None]
    """Called once, however the update ends."""


class WeightUpdate:
    """Receives, stages, commits; or gives up, and nothing has changed.

    Args:
        number: of the new weights.
        options: what was asked for.
        status: told to whoever asks.
        destination: where they go.

    Raises:
        ServiceError: OUT_OF_MEMORY.
    """

    def __init__(
        self,
        number: int,
        options: UpdateOptions,
        status: UpdateStatus,
        destination: Destination,
    ) -> None:
        self.number = number
        self.status = status
        self._options = options
        self._to = destination
        weight_sets = destination.weight_sets
        self._filling = WeightFilling(number, options, status, destination.base, weight_sets)
        self._news = asyncio.Event()
        self._staging = WorkerStaging(
            number, options, self._filling.memory, self._filling.receiver, weight_sets
        )
        self._deaths = 0
        self.over: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        """Done once it was committed or has failed."""
        self._fault: Fault | None = None
        self._finishing: asyncio.Task[None] | None = None
        if not (options.convert_dtypes or options.partial):
            # Where and as what everything will lie is known: workers hash what comes at once.
            self._staging.begin()

    # What its caller does.

    def take(self, chunk: TensorChunk, path: str) -> None:
        """Takes bytes of a tensor; `path` is that of the field, for messages.

        Raises:
            ServiceError: INVALID_FIELD, or why the update has ended meanwhile.
        """
        self._check()
        self._filling.take(chunk, path)

    async def read_files(self, config: EngineConfig) -> None:
        """Takes every tensor from a checkpoint.

        Raises:
            ServiceError: WEIGHTS_UNREADABLE, or why the update has ended meanwhile.
        """
        self._check()
        await self._filling.read_files(config, self._news, self._check)

    async def commit(self, digest: str = "") -> None:
        """Stages what came, and lets it answer.

        Raises:
            ServiceError: why it cannot be; the old weights go on.
        """
        self._check()
        self._finishing = asyncio.create_task(self._finish(digest))
        self._finishing.add_done_callback(self._tell_bug)
        try:
            await asyncio.shield(self._finishing)
        except asyncio.CancelledError:
            self.give_up(Fault(Reason.UPDATE_ABORTED, "its caller left"))
            raise

    def give_up(self, fault: Fault) -> bool:
        """Ends it without a commit, unless it is too late for that; whether it was in time."""
        if self.status.phase in ENDED or self.status.phase is Phase.APPLYING:
            return False
        self._end(Phase.ABORTED if fault.reason is Reason.UPDATE_ABORTED else Phase.FAILED, fault)
        return True

    def shut_down(self) -> None:
        """Ends it, however far it is: there is no worker any more."""
        if not self.is_over:
            self._end(Phase.FAILED, Fault(Reason.DRAINING, "the server shut down"))

    @property
    def is_over(self) -> bool:
        """Whether it was committed or has failed."""
        return self.status.phase in ENDED

    @property
    def fault(self) -> Fault | None:
        """Why it failed, if it did."""
        return self._fault if self.status.phase is not Phase.COMMITTED else None

    def look(self) -> UpdateStatus:
        """How far it is."""
        if not self.is_over:
            self._filling.look()
        return self.status

    # What workers tell.

    def worker_ready(self, worker: Worker) -> None:
        """A worker answers, and has to be told."""
        if not self.is_over:
            self._staging.worker_ready(worker)
        self._news.set()

    def worker_lost(self, worker: Worker) -> None:
        """It died; if that happens over these weights again and again, they are given up."""
        self._staging.worker_lost(worker)
        if self.status.phase in (Phase.STAGING, Phase.APPLYING):
            self._deaths += 1
            if self._deaths == _MAX_DEATHS:
                message = f"{_MAX_DEATHS} workers died over the new weights"
                self._fault = self._fault or Fault(Reason.WORKER_DIED, message)
        self._news.set()

    def event(self, worker: Worker, event: WeightEvent) -> None:
        """Something about this update's weights."""
        match event:
            case WeightsStaged():
                self._staging.staged(worker, event)
            case WeightsFailed(_, message):
                room = "MemoryError" in message or "out of memory" in message
                reason = Reason.OUT_OF_MEMORY if room else Reason.INTERNAL_ERROR
                message = f"worker {worker.index} cannot stage the weights: {message}"
                self._fault = self._fault or Fault(reason, message)
            case WeightsFilled():
                self._filling.is_filled = True
        self.status.workers_staged = self._staging.reported
        self._news.set()

    def parts_changed(self) -> None:
        """A part ended."""
        self._news.set()

    # The rest of the way.

    async def _finish(self, digest: str) -> None:
        try:
            self._check()  # it may have been given up before this task began
            async with phase_limits.staging(self._filling.memory.size):
                await self._complete()
                self.status.enter(Phase.STAGING)
                await self._until_staged()
            self.status.digest = self._staging.digest()
            check_digest(self.status.digest, (self._options.digest, digest))
            self._to.weight_sets.check_version(self.status.version, self.status.digest)
            self.status.staging = self._staging.place()
            info = self._new_info()
            if self.status.staging is Staging.IN_PLACE:
                await self._apply_in_place(info)
            self._commit(info)
        except ServiceError as error:
            if not self.is_over:
                self._end(Phase.FAILED, error.fault)
        except Exception as error:  # whatever it is, the pool must not wait for this update
            log.error("update_met_a_bug", update=self.status.update_id, exc_info=error)
            self._end_by_a_bug()
        if self._fault is not None and self.status.phase is not Phase.COMMITTED:
            raise ServiceError(self._fault)

    async def _complete(self) -> None:
        """Makes sure that every tensor is there.

        Raises:
            ServiceError: WEIGHTS_INCOMPLETE.
        """
        missing = self._filling.missing()
        while missing and not self._filling.is_filled:
            donor = await self._a_worker()
            self._filling.ask(donor, missing)
            started = donor.starts
            while not self._filling.is_filled and donor.is_ready and donor.starts == started:
                await self._wait()
        self._filling.complete()
        if not self._staging.has_begun:
            self._staging.begin()

    async def _until_staged(self) -> None:
        """Until every worker that answers has read the weights."""
        while True:
            ready = self._staging.ready
            self.status.workers_total = len(ready)
            if self._staging.all_staged(ready):
                return
            await self._wait()

    def _new_info(self) -> EngineInfo:
        """The model as the new weights make it."""
        report = self._staging.report
        return replace(
            self._to.base.info,
            weight_version=self.status.version,
            weights_digest=report.digest,
            numerics_id=report.numerics_id,
        )

    async def _apply_in_place(self, info: EngineInfo) -> None:
        self.status.enter(Phase.DRAINING)
        self._to.owner.hold_back(info)
        self._to.owner.change_samples(self._options.running_samples, info, "drained")
        async with phase_limits.draining():
            while self._to.owner.parts_running():
                await self._wait()
        self.status.enter(Phase.APPLYING)
        async with phase_limits.applying():
            while not self._staging.apply():
                await self._wait()

    def _commit(self, info: EngineInfo) -> None:
        weight_set = WeightSet(
            self.number, info, self._filling.memory, self._filling.receiver.layout
        )
        self._staging.end()
        self._to.owner.commit(weight_set)
        self.status.enter(Phase.COMMITTED)
        if self.status.staging is Staging.BESIDE:
            self._to.owner.change_samples(self._options.running_samples, info, "committed")
        self._let_go()

    def _end(self, phase: Phase, fault: Fault) -> None:
        applied = self.status.phase is Phase.APPLYING
        self._fault = fault
        self.status.fault = fault
        self.status.enter(phase)
        try:
            if applied:
                self._staging.kill_applying()
            self._to.weight_sets.abandon(
                self.number, self._filling.memory, reusable=not self._filling.is_read
            )
        finally:
            self._let_go()

    def _end_by_a_bug(self) -> None:
        """Fails, unless calls begin with the new weights already: those cannot be taken back."""
        if self.over.done():
            return
        current = self._to.weight_sets.current
        if current is None or current.number != self.number:
            message = "a bug in the server; its log has the id of this update"
            self._end(Phase.FAILED, Fault(Reason.INTERNAL_ERROR, message))
            return
        if not self.is_over:
            self.status.enter(Phase.COMMITTED)
        self._let_go()

    def _let_go(self) -> None:
        """Whatever waited for its end goes on."""
        self.over.set_result(None)
        try:
            self._to.ended(self)
        finally:
            self._to.owner.hold_back(None)
            self._news.set()

    def _tell_bug(self, task: asyncio.Task[None]) -> None:
        """Why it failed its status tells; of anything else nobody may be left to hear."""
        error = None if task.cancelled() else task.exception()
        if error is not None and not isinstance(error, ServiceError):
            log.error("update_met_a_bug", update=self.status.update_id, exc_info=error)

    async def _a_worker(self) -> Worker:
        """A worker that has the running weights."""
        while True:
            for worker in self._staging.ready:
                if self._to.base.number in worker.weights:
                    return worker
            await self._wait()

    async def _wait(self) -> None:
        """Until something happened.

        Raises:
            ServiceError: the update has ended, or a worker cannot go on with it.
        """
        self._check()
        await self._news.wait()
        self._news.clear()
        self._check()

    def _check(self) -> None:
        if self._fault is not None:
            raise ServiceError(self._fault)
