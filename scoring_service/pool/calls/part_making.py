"""Parts of calls: made, computed again, and let go of with their weights. In the event loop."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import replace

import structlog

from scoring_service.engine.events import WeightsChanged
from scoring_service.peak_memory import part_credit
from scoring_service.pool.calls.cutting import CallPiece, piece_of
from scoring_service.pool.calls.dispatch import Dispatcher
from scoring_service.pool.observer import PoolObserver
from scoring_service.pool.streams.stream import CallStream, Part
from scoring_service.pool.weights.sets import WeightSet
from scoring_service.pool.weights.weights import PoolWeights
from scoring_service.pool.workers.worker import Worker
from scoring_service.types import SampleCall

log = structlog.get_logger(__name__)


class PartMaking:
    """Makes parts, each with an id of its own, and knows what computes them.

    Args:
        workers: of the pool.
        weights: that they have.
        dispatcher: sends parts out.
        observer: is told of retries.
    """

    def __init__(
        self,
        workers: Sequence[Worker],
        weights: PoolWeights,
        dispatcher: Dispatcher,
        observer: PoolObserver,
    ) -> None:
        self._workers = workers
        self._weights = weights
        self._dispatcher = dispatcher
        self._observer = observer
        self._ids = itertools.count(1)

    def make(
        self, piece: CallPiece, stream: CallStream, retried: bool = False, alone: bool = False
    ) -> Part:
        """A piece of a call as one worker gets it."""
        part_id = next(self._ids)
        own = replace(piece.call, call_id=part_id)
        if isinstance(own, SampleCall):
            own = replace(own, part_of=stream.call.call_id)
        return Part(
            part_id,
            own,
            stream,
            piece.size,
            piece.keys,
            part_credit(self._dispatcher.batch_tokens),
            retried=retried,
            alone=alone,
        )

    def retry(self, part: Part, *, alone: bool = False, anew: bool = False) -> bool:
        """What is left of a part is computed again, with the weights that it had.

        Args:
            part: that ended too early.
            alone: with nobody beside it, wherever that is; else where others are.
            anew: with whatever weights are running.

        Returns:
            Whether anything is left of it.
        """
        stream = part.stream
        stream.usage += part.delivered.usage
        left = part.delivered.remainder(part.call)
        if left is None:
            return False
        chunk_size = self._dispatcher.chunk_size if len(self._workers) > 1 else 0
        again = self.make(
            piece_of(left, chunk_size),
            stream,
            retried=part.retried or not (alone or anew),
            alone=alone or part.alone,
        )
        if not anew:
            log.info("retried", request_id=stream.call.request_id, tokens=again.tokens)
            self._observer.retried()
            again.weights = part.weights
            if part.weights is not None:
                self._weights.weight_sets.hold(part.weights)
        stream.waiting.appendleft(again)
        self._dispatcher.add(stream)
        return True

    def free(self, part: Part) -> None:
        """A part that is over needs no weights, and its call has its turn with what else runs."""
        if part.weights is not None:
            self._weights.weight_sets.release(part.weights)
            part.weights = None
        if part.stream.waiting and not part.stream.ended:
            self._dispatcher.add(part.stream)
        if self._weights.update is not None:
            self._weights.update.parts_changed()

    def digest_of(self, part: Part) -> str | None:
        """Of the weights that compute a part."""
        weight_set = self._weight_set_of(part)
        return None if weight_set is None else weight_set.info.weights_digest

    def tell_weights(self, part: Part) -> None:
        """Says so before results come from other weights than those before them."""
        weight_set = self._weight_set_of(part)
        if weight_set is not None and part.stream.told != weight_set.number:
            part.stream.told = weight_set.number
            part.stream.push(WeightsChanged(weight_set.info))

    def _weight_set_of(self, part: Part) -> WeightSet | None:
        return None if part.weights is None else self._weights.weight_sets.find(part.weights)
