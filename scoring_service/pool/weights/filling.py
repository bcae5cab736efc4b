"""The memory of an update of the weights, until every tensor is in it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from scoring_service.engine.events import FillWeights
from scoring_service.engine.weight_memory import HEADER_BYTES, lay_out
from scoring_service.pool.weights.checkpoint import read_checkpoint
from scoring_service.pool.weights.receiver import (
    TensorChunk,
    WeightReceiver,
    incomplete,
    widest_element,
)
from scoring_service.pool.weights.sets import WeightSet, WeightSets
from scoring_service.pool.weights.status import UpdateOptions, UpdateStatus
from scoring_service.pool.workers.worker import Worker
from scoring_service.types import EngineConfig

_USUAL_BYTES = 4
"""Of an element that comes to be converted: most often a float32."""


class WeightFilling:
    """Tensors come from a stream, from files, or from a worker that has older ones.

    Args:
        number: of the new weights.
        options: what was asked for.
        status: told to whoever asks.
        base: the weights that they follow.
        weight_sets: of the pool, which have memory.

    Raises:
        ServiceError: OUT_OF_MEMORY.
    """

    def __init__(
        self,
        number: int,
        options: UpdateOptions,
        status: UpdateStatus,
        base: WeightSet,
        weight_sets: WeightSets,
    ) -> None:
        self._number = number
        self._partial = options.partial
        self._status = status
        self._base = base
        self._specs = base.info.tensors
        layout = lay_out(self._specs, widest_element() if options.convert_dtypes else 0)
        # Places are as wide as the widest type that may come; what is taken is what comes.
        usual = lay_out(self._specs, _USUAL_BYTES if options.convert_dtypes else 0).size
        self.memory = weight_sets.take_memory(layout.size, usual)
        self.receiver = WeightReceiver(
            self._specs, layout, self.memory, converts=options.convert_dtypes
        )
        status.bytes_total = layout.tensor_bytes
        status.tensors_total = len(layout.regions)
        self.is_filled = False
        """Whether all came at once, from files or from a worker."""
        self.is_read = False
        """Whether another process writes into the memory."""

    def take(self, chunk: TensorChunk, path: str) -> None:
        """Takes bytes of a tensor; `path` is that of the field, for messages.

        Raises:
            ServiceError: INVALID_FIELD.
        """
        self.receiver.take(chunk, path)
        self._status.bytes_received = self.receiver.bytes_received

    async def read_files(
        self, config: EngineConfig, news: asyncio.Event, check: Callable[[], None]
    ) -> None:
        """Takes every tensor from a checkpoint.

        Args:
            config: names it.
            news: set when something happened that may end the update.
            check: raises when it has.

        Raises:
            ServiceError: WEIGHTS_UNREADABLE, or why the update has ended meanwhile.
        """
        reading = asyncio.create_task(
            read_checkpoint(config, self._base.info, self.receiver.layout, self.memory.path)
        )
        self.is_read = True
        try:
            while not reading.done():
                check()
                changed = asyncio.create_task(news.wait())
                await asyncio.wait({reading, changed}, return_when=asyncio.FIRST_COMPLETED)
                changed.cancel()
                news.clear()
            reading.result()
        finally:
            reading.cancel()
        self.is_read = False
        self._status.bytes_received = self._status.bytes_total
        self._status.tensors_received = self._status.tensors_total
        self.is_filled = True

    def missing(self) -> list[str]:
        """Names of tensors that a worker has to give.

        Raises:
            ServiceError: WEIGHTS_INCOMPLETE.
        """
        missing = [] if self.is_filled else self.receiver.missing
        if missing and (self.receiver.begun or not self._partial):
            raise incomplete(self.receiver)
        return missing

    def ask(self, donor: Worker, names: list[str]) -> None:
        """Has a worker write tensors of the older weights."""
        donor.staging.add(self._number)
        layout, source = self.receiver.layout, self._base.number
        donor.send(FillWeights(self._number, self.memory.path, layout, tuple(names), source))

    def complete(self) -> None:
        """Every tensor is there."""
        self.receiver.filled()
        self._status.tensors_received = self._status.tensors_total

    def look(self) -> None:
        """Has the status say how far it is."""
        if self.is_read:
            self._look_at_memory()
        elif not self.is_filled:
            self._status.tensors_received = self.receiver.tensors_received

    def _look_at_memory(self) -> None:
        """Counts what another process has written, which it does in order."""
        end = HEADER_BYTES + self.memory.ready
        sizes = [
            region.size
            for region in self.receiver.layout.regions.values()
            if region.offset + region.size <= end
        ]
        self._status.bytes_received, self._status.tensors_received = sum(sizes), len(sizes)
