"""Runs the self-audit beside a pool's calls."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from typing import Protocol

import structlog

from scoring_service.engine.events import CallFailed, CallFinished, ScoreSlice
from scoring_service.errors import Fault, Reason, ServiceError
from scoring_service.pool.observer import PoolObserver
from scoring_service.pool.streams.self_audit import (
    CLIENT,
    AuditSettings,
    Watch,
    choose,
    largest_difference,
    widest,
)
from scoring_service.pool.streams.stream import CallStream
from scoring_service.types import Call, EngineInfo

log = structlog.get_logger(__name__)

_PATIENCE = 600.0
"""Seconds without news after which an audit is given up."""

_MAX_CONCURRENT = 8
"""Audits under way."""


class Runs(Protocol):
    """What an auditor needs of a pool."""

    observer: PoolObserver

    @property
    def info(self) -> EngineInfo:
        """The model that answers."""
        ...

    def new_call_id(self) -> int:
        """An id for the next call."""
        ...

    def run(
        self,
        call: Call,
        client: str = "",
        avoid: int | None = None,
        accepts: Callable[[EngineInfo], bool] | None = None,
        alone: bool = False,
    ) -> AbstractAsyncContextManager[CallStream]:
        """Admits a call and gives its events."""
        ...


class Auditor:
    """Chooses completions, has them computed again, and compares."""

    def __init__(self, pool: Runs, settings: AuditSettings) -> None:
        self._pool = pool
        self._settings = settings
        self._rng = random.Random()
        self._tasks: set[asyncio.Task[None]] = set()

    def choose(self, call: Call, client: str) -> Watch | None:
        """A completion of the call to watch, now and then; never of an audit."""
        return None if client == CLIENT else choose(call, self._settings.rate, self._rng)

    def compare(self, watch: Watch) -> None:
        """Has it computed again, in the background; not while many others wait for that.

        Audits take room in the queue and in workers, and where others always go first they wait.
        """
        if len(self._tasks) >= _MAX_CONCURRENT:
            self._pool.observer.audited("skipped")
            return
        task = asyncio.create_task(self._compare(watch))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _compare(self, watch: Watch) -> None:
        expected = watch.logprobs
        if expected is None:
            return
        again = watch.again(self._pool.new_call_id())
        second = Watch(again, again.groups[0], again.groups[0].completions[0])

        def same_weights(info: EngineInfo) -> bool:
            return info.weights_digest == watch.weights_digest

        try:
            threshold = self._settings.threshold_for(self._pool.info)
            async with self._pool.run(
                again, CLIENT, watch.worker, same_weights, alone=True
            ) as stream:
                fault = await _read(stream, second)
        except ServiceError:
            self._pool.observer.audited("refused")
            return
        found = second.logprobs
        if found is None:
            replaced = fault is not None and fault.reason is Reason.WEIGHT_VERSION_MISMATCH
            self._pool.observer.audited("refused" if replaced else "failed")
            return
        difference = largest_difference(expected, found)
        outcome = "different" if difference else "same"
        if difference > threshold:
            outcome = "above_threshold"
            log.error(
                "self_audit",
                request_id=watch.call.request_id,
                group=watch.group.index,
                completion=watch.completion.index,
                difference=difference,
                **widest(expected, found),
                threshold=threshold,
                tokens=len(expected),
                worker=watch.worker,
            )
        self._pool.observer.audited(outcome, difference)


async def _read(stream: CallStream, watch: Watch) -> Fault | None:
    """Notes what comes; why the audit failed, if it did."""
    while (event := await stream.next(_PATIENCE)) is not None:
        if isinstance(event, CallFailed):
            return event.fault
        if isinstance(event, CallFinished):
            return None
        watch.note(event, -1, None)
        if isinstance(event, ScoreSlice):
            stream.taken(event.size)
    return None
