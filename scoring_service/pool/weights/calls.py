"""What updates of the weights need of a pool's calls."""

from __future__ import annotations

from typing import Protocol

from scoring_service.pool.observer import PoolObserver
from scoring_service.pool.weights.sets import WeightSet
from scoring_service.pool.weights.status import RunningSamples
from scoring_service.pool.workers.worker import Worker
from scoring_service.types import EngineInfo


class Calls(Protocol):
    """What an update needs of its pool's calls."""

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


class WeightCalls(Calls, Protocol):
    """What a pool does for its weights."""

    observer: PoolObserver

    def worker_admitted(self, worker: Worker) -> None:
        """A worker answers as the others do."""
        ...

    def model_replaced(self, info: EngineInfo) -> None:
        """What is loaded is another model than before."""
        ...
