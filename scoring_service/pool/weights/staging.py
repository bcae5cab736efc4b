"""An update at the workers: who was told to stage it, who has, who writes it over the others."""

from __future__ import annotations

from collections.abc import Iterable

from scoring_service.engine.events import ApplyWeights, StageWeights, WeightsStaged
from scoring_service.engine.weight_memory import WeightMemory
from scoring_service.errors import Fault, Reason, ServiceError
from scoring_service.pool.weights.receiver import WeightReceiver
from scoring_service.pool.weights.sets import WeightSets
from scoring_service.pool.weights.status import Staging, UpdateOptions
from scoring_service.pool.workers.worker import Worker


class WorkerStaging:
    """Tells workers what to do with the new weights, and keeps what they report.

    Args:
        number: of the new weights.
        options: of the update.
        memory: that the weights are in.
        receiver: that fills it.
        weight_sets: of the pool.
    """

    def __init__(
        self,
        number: int,
        options: UpdateOptions,
        memory: WeightMemory,
        receiver: WeightReceiver,
        weight_sets: WeightSets,
    ) -> None:
        self.has_begun = False
        """Whether workers have been told to stage."""
        self._number = number
        self._options = options
        self._memory = memory
        self._receiver = receiver
        self._workers = weight_sets.workers
        self._reports: dict[int, WeightsStaged] = {}
        """By worker; a worker that dies takes its report with it."""
        self._applying: set[int] = set()

    @property
    def ready(self) -> list[Worker]:
        """Workers that answer."""
        return [worker for worker in self._workers if worker.is_ready]

    @property
    def reported(self) -> int:
        """How many workers have staged."""
        return len(self._reports)

    @property
    def report(self) -> WeightsStaged:
        """What one of them says; they agree."""
        return next(iter(self._reports.values()))

    def begin(self) -> None:
        """Has every worker stage what is there, and what is still coming."""
        self.has_begun = True
        for worker in self.ready:
            self._tell(worker)

    def worker_ready(self, worker: Worker) -> None:
        """A worker answers, and has to be told."""
        if self.has_begun:
            self._tell(worker)

    def worker_lost(self, worker: Worker) -> None:
        """It died, and what it had with it."""
        self._reports.pop(worker.index, None)
        self._applying.discard(worker.index)

    def staged(self, worker: Worker, report: WeightsStaged) -> None:
        """A worker has read the weights."""
        self._reports[worker.index] = report
        if report.usable:
            worker.weights.add(self._number)

    def all_staged(self, workers: list[Worker]) -> bool:
        """Whether each of them has, and there is one."""
        return bool(workers) and all(worker.index in self._reports for worker in workers)

    def digest(self) -> str:
        """What all workers found.

        Raises:
            ServiceError: INTERNAL_ERROR; they found different ones.
        """
        found = {report.digest for report in self._reports.values()}
        if len(found) != 1:
            message = f"workers read different weights: {', '.join(sorted(found))}"
            raise ServiceError(Fault(Reason.INTERNAL_ERROR, message))
        return found.pop()

    def place(self) -> Staging:
        """In place, where some worker has no room beside the running weights.

        Raises:
            ServiceError: OUT_OF_MEMORY; beside was asked for.
        """
        if all(self._reports[worker.index].usable for worker in self.ready):
            return Staging.BESIDE
        if self._options.staging is Staging.BESIDE:
            message = "a worker has no room for the weights beside those that run"
            raise ServiceError(Fault(Reason.OUT_OF_MEMORY, message))
        return Staging.IN_PLACE

    def apply(self) -> bool:
        """Has workers write the weights over theirs; whether all have."""
        ready = self.ready
        waiting = [worker for worker in ready if self._number not in worker.weights]
        for worker in waiting:
            if worker.index in self._reports and worker.index not in self._applying:
                self._applying.add(worker.index)
                # It forgets all others.
                worker.weights.clear()
                worker.send(ApplyWeights(self._number))
        return bool(ready) and not waiting

    def kill_applying(self) -> None:
        """Workers that have forgotten the running weights start again with them."""
        for worker in self._workers:
            if worker.index in self._applying:
                worker.kill("an update that it wrote over its weights failed", useless=False)

    def end(self) -> None:
        """The weights are committed: they are no longer on their way."""
        for worker in self._workers:
            worker.staging.discard(self._number)

    def _tell(self, worker: Worker) -> None:
        worker.staging.add(self._number)
        worker.send(
            StageWeights(
                self._number,
                self._memory.path,
                self._receiver.layout,
                self._options.version,
                beside=self._options.staging is not Staging.IN_PLACE,
            )
        )


def check_digest(digest: str, expected: Iterable[str]) -> None:
    """Raises ServiceError where the digest is not one that was expected; "" expects nothing."""
    for wanted in expected:
        if wanted and wanted != digest:
            message = f"the weights have the digest {digest}, not {wanted}"
            raise ServiceError(Fault(Reason.WEIGHTS_DIGEST_MISMATCH, message))
