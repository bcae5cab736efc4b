"""The weights of a pool: updates one at a time, and workers that come back brought up to date."""

from __future__ import annotations

import itertools
import uuid
from dataclasses import dataclass, field

import structlog

from scoring_service.engine.events import (
    LOADED,
    ApplyWeights,
    StageWeights,
    WeightEvent,
    WeightsDropped,
    WeightsFailed,
    WeightsStaged,
)
from scoring_service.errors import Fault, Reason, ServiceError
from scoring_service.pool.observer import PoolObserver
from scoring_service.pool.weights.owner import WeightOwner
from scoring_service.pool.weights.receiver import unsupported
from scoring_service.pool.weights.sets import WeightSet, WeightSets
from scoring_service.pool.weights.status import ENDED, Phase, UpdateOptions, UpdateStatus
from scoring_service.pool.weights.update import Destination, WeightUpdate
from scoring_service.pool.workers.worker import Worker
from scoring_service.types import EngineInfo

log = structlog.get_logger(__name__)


@dataclass(slots=True)
class PoolWeights:
    """Which weights answer, the update that is under way, and how the last one ended."""

    workers: list[Worker]
    observer: PoolObserver
    owner: WeightOwner = field(init=False)
    """Set once it is there, before any worker is started."""
    update: WeightUpdate | None = None
    last: UpdateStatus | None = None
    committed: int = 0
    """Updates since the server began."""
    weight_sets: WeightSets = field(init=False)
    _numbers: itertools.count[int] = field(default_factory=lambda: itertools.count(LOADED + 1))
    _catching_up: dict[int, int] = field(default_factory=dict)
    """Worker that came back -> the weights that it is given."""

    def __post_init__(self) -> None:
        self.weight_sets = WeightSets(self.workers)

    @property
    def current(self) -> WeightSet:
        """What calls begin with.

        Raises:
            ServiceError: LOADING.
        """
        if self.weight_sets.current is None:
            fault = Fault(Reason.LOADING, "the model is not loaded yet", retry_after=1.0)
            raise ServiceError(fault)
        return self.weight_sets.current

    def begin(self, options: UpdateOptions, identity: str) -> WeightUpdate:
        """Begins an update.

        Raises:
            ServiceError: LOADING, UPDATE_IN_PROGRESS, UPDATES_UNSUPPORTED, WEIGHT_VERSION_MISMATCH,
                WEIGHT_VERSION_NOT_NEWER, OUT_OF_MEMORY.
        """
        current = self.current
        if self.update is not None:
            status = self.update.status
            message = f"update {status.update_id} to version {status.version} is {status.phase}"
            raise ServiceError(Fault(Reason.UPDATE_IN_PROGRESS, message, retry_after=1.0))
        if not any(worker.is_ready for worker in self.workers):
            raise ServiceError(Fault(Reason.LOADING, "no worker is ready", retry_after=1.0))
        if problem := unsupported(current.info.tensors):
            raise ServiceError(Fault(Reason.UPDATES_UNSUPPORTED, problem))
        _check_version(options, current.info.weight_version)
        if options.digest:
            self.weight_sets.check_version(options.version, options.digest)
        status = UpdateStatus(uuid.uuid4().hex, options.version, identity)
        destination = Destination(self.owner, self.weight_sets, current, self._ended)
        self.update = WeightUpdate(next(self._numbers), options, status, destination)
        log.info("update_begun", update=status.update_id, version=options.version)
        return self.update

    def abort(self, update_id: str) -> UpdateStatus:
        """Gives an update up; an empty id means whichever is under way.

        Raises:
            ServiceError: UPDATE_NOT_FOUND, or UPDATE_APPLYING when it is too late for that.
        """
        update = self.update
        if update is None or update_id not in ("", update.status.update_id):
            named = f"update {update_id!r}" if update_id else "an update"
            raise ServiceError(Fault(Reason.UPDATE_NOT_FOUND, f"{named} is not under way"))
        if not update.give_up(Fault(Reason.UPDATE_ABORTED, "AbortUpdate gave it up")):
            message = (
                f"update {update.status.update_id} is being written over the running weights: "
                "it is committed, or fails, within moments"
            )
            raise ServiceError(Fault(Reason.UPDATE_APPLYING, message))
        return update.status

    def admit(self, worker: Worker, info: EngineInfo) -> bool:
        """Whether a worker that has loaded its model answers as the others do.

        One that is to be brought up to date first is admitted later.
        """
        worker.weights = {LOADED}
        current = self.weight_sets.current
        others = any(w.is_ready for w in self.workers if w is not worker)
        if current is None or (current.number == LOADED and not others):
            if current is None or not _same_model(current.info, info):
                self.weight_sets.begin(info)
                if current is not None:
                    self._give_up_following()
                    self.owner.model_replaced(info)
        elif current.number == LOADED:
            if not _same_model(current.info, info):
                self._refuse(worker, info)
                return False
        elif info.tensors != current.info.tensors:
            self._refuse(worker, info)
            return False
        else:
            self._catch_up(worker)
            return False
        self.worker_answers(worker)
        return True

    def worker_answers(self, worker: Worker) -> None:
        """A worker was admitted: the update that is under way needs it too."""
        if self.update is not None:
            self.update.worker_ready(worker)

    def worker_lost(self, worker: Worker) -> None:
        """It died, and all that it had with it."""
        self._catching_up.pop(worker.index, None)
        self.weight_sets.worker_lost(worker)
        if self.update is not None:
            self.update.worker_lost(worker)

    def event(self, worker: Worker, event: WeightEvent) -> None:
        """What a worker says about weights."""
        if isinstance(event, WeightsDropped):
            self.weight_sets.dropped(worker, event.weights)
        elif self.update is not None and event.weights == self.update.number:
            self.update.event(worker, event)
        elif self._catching_up.get(worker.index) == event.weights:
            self._caught_up(worker, event)

    def commit(self, weight_set: WeightSet) -> None:
        """Calls begin with these from now on."""
        self.weight_sets.promote(weight_set)
        self.committed += 1
        for worker in self.workers:
            if worker.index in self._catching_up:
                self._catch_up(worker)

    def close(self) -> None:
        """Workers are gone."""
        if self.update is not None:
            self.update.shut_down()
        self.weight_sets.close()

    def _ended(self, update: WeightUpdate) -> None:
        status = update.look()
        self.update, self.last = None, status
        seconds = {str(phase): round(s, 4) for phase, s in status.phase_seconds.items()}
        level = log.info if status.phase is Phase.COMMITTED else log.warning
        level(
            "update_ended",
            update=status.update_id,
            version=status.version,
            phase=str(status.phase),
            staging=None if status.staging is None else str(status.staging),
            received=status.bytes_received,
            digest=status.digest,
            seconds=seconds,
            message=status.error,
        )
        phases = {str(p): s for p, s in status.phase_seconds.items() if p not in ENDED}
        self.observer.weights_updated(str(status.phase), phases)

    def _give_up_following(self) -> None:
        """What an update leaves out would be taken from a model that nobody meant by it."""
        if self.update is not None:
            message = "the workers died that had the weights which the update follows"
            self.update.give_up(Fault(Reason.WORKER_DIED, message))

    def _refuse(self, worker: Worker, info: EngineInfo) -> None:
        log.error("other_model", worker=worker.index, weights_digest=info.weights_digest)
        worker.loads_on("another model than the others")
        worker.kill("it loaded another model than the others")

    def _catch_up(self, worker: Worker) -> None:
        """Gives a worker that came back the running weights, over those it has loaded."""
        current = self.current
        if current.memory is None or current.layout is None:
            raise RuntimeError("loaded weights need not be given to a worker")
        worker.loads_on(f"loading version {current.info.weight_version} of the weights")
        worker.weights.clear()
        worker.staging.add(current.number)
        self._catching_up[worker.index] = current.number
        version = current.info.weight_version
        worker.send(
            StageWeights(current.number, current.memory.path, current.layout, version, beside=False)
        )

    def _caught_up(self, worker: Worker, event: WeightEvent) -> None:
        current = self.current
        if not isinstance(event, WeightsStaged) or event.digest != current.info.weights_digest:
            what = event.message if isinstance(event, WeightsFailed) else "another digest"
            log.error("catching_up_failed", worker=worker.index, message=what)
            worker.kill("it could not be given the running weights")
        elif not event.usable:
            worker.send(ApplyWeights(current.number))
        elif event.numerics_id != current.info.numerics_id:
            log.error("other_model", worker=worker.index, numerics_id=event.numerics_id)
            worker.kill("it computes other bits than the others")
        else:
            del self._catching_up[worker.index]
            worker.staging.discard(current.number)
            worker.weights = {current.number}
            worker.answers()
            self.owner.worker_admitted(worker)
            self.worker_answers(worker)


def _check_version(options: UpdateOptions, running: int) -> None:
    if options.base_version is not None and options.base_version != running:
        message = f"version {running} is running, not {options.base_version}"
        raise ServiceError(Fault(Reason.WEIGHT_VERSION_MISMATCH, message))
    if options.version <= running and not options.allow_older_version:
        message = f"version {running} is running, and {options.version} is not newer"
        raise ServiceError(Fault(Reason.WEIGHT_VERSION_NOT_NEWER, message))


def _same_model(left: EngineInfo, right: EngineInfo) -> bool:
    """Whether two workers give the same numbers."""
    return (left.weights_digest, left.weight_version, left.numerics_id) == (
        right.weights_digest,
        right.weight_version,
        right.numerics_id,
    )
