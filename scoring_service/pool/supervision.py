"""What a pool makes of what its workers tell: who answers, who is lost, what calls begin with."""

from __future__ import annotations

from collections.abc import Sequence

import structlog

from scoring_service.engine.events import CallEvent, WeightEvent
from scoring_service.errors import Fault, Reason, required_weights_replaced
from scoring_service.pool.calls.admitted import AdmittedCalls
from scoring_service.pool.calls.part_events import move_parts, part_event
from scoring_service.pool.calls.running_samples import change_samples
from scoring_service.pool.observer import PoolObserver
from scoring_service.pool.weights.sets import WeightSet
from scoring_service.pool.weights.status import RunningSamples
from scoring_service.pool.weights.weights import PoolWeights
from scoring_service.pool.workers.cache_flush import CacheFlush
from scoring_service.pool.workers.executor import WorkerExited
from scoring_service.pool.workers.owner import WorkerState
from scoring_service.pool.workers.readiness import PoolState, Readiness
from scoring_service.pool.workers.worker import Worker
from scoring_service.types import EngineInfo

log = structlog.get_logger(__name__)


class Supervision:
    """The owner of a pool's workers and of their weights.

    A worker that dies is started again, and what it had not answered goes to another one, once;
    with no other one that answers, its calls end with UNAVAILABLE, and so do those that wait once
    all workers are in a crash loop. A worker that dies before any ever answered is not tried again:
    what killed it would most likely kill the next. But one that is killed because it said nothing
    is, while another goes on with its first start: where many read their program from a slow disk
    at once, one may be late.

    Args:
        workers: of the pool.
        weights: that they have.
        cache: of their prompts.
        calls: that were admitted.
        readiness: of the pool.
        observer: is told who dies and who comes back.
    """

    def __init__(
        self,
        workers: Sequence[Worker],
        weights: PoolWeights,
        cache: CacheFlush,
        calls: AdmittedCalls,
        readiness: Readiness,
        observer: PoolObserver,
    ) -> None:
        self._workers = workers
        self._weights = weights
        self._cache = cache
        self._calls = calls
        self._readiness = readiness
        self._observer = observer

    def _end_hopeless_calls(self) -> None:
        """Ends what was admitted where no worker is going to answer it."""
        if (fault := self._readiness.hopeless) is not None:
            for stream in list(self._calls.streams.values()):
                self._calls.ends.fail(stream, fault)

    def _update(self) -> None:
        self._readiness.update()
        self._end_hopeless_calls()

    # What workers tell; see `workers.owner`.

    def worker_ready(self, worker: Worker, info: EngineInfo) -> None:
        """It takes parts, if it computes what the others compute."""
        if self._weights.admit(worker, info):
            self.worker_admitted(worker)
        else:
            self._update()

    def worker_lost(self, worker: Worker, exited: WorkerExited) -> None:
        """What it had goes to others, where there are any."""
        self._weights.worker_lost(worker)
        self._cache.lost(worker.index)
        self._observer.worker_died(worker.index)
        parts = list(worker.parts.values())
        if parts:
            self._calls.admission.throughput.dropped()
        for part in parts:
            worker.drop(part)
        if self._readiness.info is None and not self._may_be_late(worker):
            worker.state = WorkerState.GIVEN_UP
            self._readiness.give_up(exited.in_words(" while it loaded the model"))
            return
        fault = Fault(
            Reason.WORKER_DIED,
            exited.in_words(),
            retry_after=worker.settings.first_backoff + worker.restart_seconds,
        )
        can_move = bool(self._readiness.ready_workers())
        move_parts(self._calls, parts, fault, can_move=can_move)
        self._update()
        self._calls.dispatcher.dispatch()

    def _may_be_late(self, worker: Worker) -> bool:
        """Whether a worker was only slow to read its program, as others may be that go on."""
        others = (other for other in self._workers if other is not worker)
        return worker.said_nothing and any(
            other.state is WorkerState.LOADING and other.starts == 1 for other in others
        )

    def worker_refused(self, worker: Worker, message: str) -> None:
        """Trying again would not help: it is given up, and the pool with the last of them."""
        worker.state = WorkerState.GIVEN_UP
        log.error("load_failed", worker=worker.index, message=message)
        given_up = all(other.state is WorkerState.GIVEN_UP for other in self._workers)
        if self._readiness.info is None or given_up:
            self._readiness.give_up(message)
            self._end_hopeless_calls()
        else:
            self._update()

    def worker_changed(self) -> None:
        """Passes a change of a worker on as one of the pool."""
        if self._readiness.state is not PoolState.FAILED:
            self._update()

    def part_event(self, worker: Worker, event: CallEvent) -> None:
        """Something of a part to its call."""
        part_event(self._calls, worker, event)

    def weight_event(self, worker: Worker, event: WeightEvent) -> None:
        """Something about weights."""
        self._weights.event(worker, event)

    def cache_flushed(self, worker: Worker, pages: int) -> None:
        """It forgot cached prompts."""
        worker.prefixes.clear()
        self._cache.flushed(worker.index, pages)

    # What the weights tell, and what they have done; see `weights.owner`.

    def worker_admitted(self, worker: Worker) -> None:
        """It computes what the others compute."""
        info = self._weights.current.info
        if info is not self._readiness.info:
            self._readiness.info = info
            self._calls.model_ready(info)
        self._observer.worker_ready(worker.index, worker.restart_seconds)
        log.info("worker_ready", worker=worker.index, seconds=round(worker.restart_seconds, 2))
        self._update()
        self._calls.dispatcher.dispatch()

    def model_replaced(self, info: EngineInfo) -> None:
        """No worker was left, and the first that came back has loaded another model.

        It has the number of the first one, so nothing may go on by that number alone.
        """
        log.warning("model_replaced", weights_digest=info.weights_digest)
        for stream in list(self._calls.streams.values()):
            stream.told = None
            if any(part.weights is not None for part in stream.waiting):
                message = "the workers died that had the weights which this call began with"
                self._calls.ends.fail(stream, Fault(Reason.WORKER_DIED, message, retry_after=0.1))
            elif stream.insists_against(info):
                self._calls.ends.fail(stream, required_weights_replaced())

    def commit(self, weight_set: WeightSet) -> None:
        """Calls begin with these weights from now on."""
        self._weights.commit(weight_set)
        self._readiness.info = weight_set.info
        for worker in self._workers:
            worker.prefixes.clear()  # what they hold was computed with other weights
        self._calls.ends.end_audits(weight_set.info)
        if self._readiness.state is PoolState.AWAITING_WEIGHTS:
            self._update()
        self._readiness.tell()

    def hold_back(self, info: EngineInfo | None) -> None:
        """Begins nothing but what must end before weights that make the model this; None = all."""
        self._calls.dispatcher.hold_back(info)

    def parts_running(self) -> int:
        """Parts that workers compute, and those that wait and must end on the running weights."""
        return self._calls.parts_running()

    def change_samples(self, policy: RunningSamples, info: EngineInfo, reason: str) -> None:
        """Does with the samples that are being drawn what an update to `info` says."""
        change_samples(self._calls, policy, info, reason)
