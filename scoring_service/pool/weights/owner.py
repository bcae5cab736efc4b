"""What weights need of whoever owns a pool's workers and calls."""

from __future__ import annotations

from typing import Protocol

from scoring_service.pool.weights.sets import WeightSet
from scoring_service.pool.weights.status import RunningSamples
from scoring_service.pool.workers.worker import Worker
from scoring_service.types import EngineInfo


class WeightOwner(Protocol):
    """What weights tell, and what they have done."""

    def worker_admitted(self, worker: Worker) -> None:
        """A worker answers as the others do."""
        ...

    def model_replaced(self, info: EngineInfo) -> None:
        """What is loaded is another model than before."""
        ...

    def hold_back(self, info: EngineInfo | None) -> None:
        """Begins nothing but what must end before weights that make the model this; None = all."""
        ...

    def change_samples(self, policy: RunningSamples, info: EngineInfo, reason: str) -> None:
        """Does with the samples that are being drawn what an update to `info` says."""
        ...

    def parts_running(self) -> int:
        """Parts that workers compute, and those that wait and must end on the running weights."""
        ...

    def commit(self, weight_set: WeightSet) -> None:
        """Calls begin with these weights from now on."""
        ...
