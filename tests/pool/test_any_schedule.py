"""A pool whose workers compute nothing, so that many orders of what befalls it can be tried.

Calls of several clients, readers that pause, stall and leave, updates, aborts, audits, deaths,
another model, steps that fail, drains: each at any moment, as a random generator has it. Every row
and token comes once, from weights that the call takes; every call ends, and once all have left
nothing is held for them.
"""

from __future__ import annotations

import asyncio
from contextlib import AbstractAsyncContextManager, suppress
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pytest

from scoring_service.engine.events import (
    CallFailed,
    CallFinished,
    ItemFailed,
    SampleSlice,
    ScoreSlice,
    WeightsChanged,
)
from scoring_service.errors import Fault, Reason, ServiceError
from scoring_service.pool.admission import reply_memory
from scoring_service.pool.pool import WorkerPool
from scoring_service.pool.settings import PoolSettings
from scoring_service.pool.streams.self_audit import AuditSettings
from scoring_service.pool.streams.stream import CallStream
from scoring_service.pool.weights.status import RunningSamples, Staging, UpdateOptions
from scoring_service.pool.workers.readiness import PoolState
from scoring_service.pool.workers.workload import Taken
from scoring_service.types import Call, EngineInfo, ScoreCall
from tests.intensity import short_or_long
from tests.pool.random_workers import SLICE_BYTES, RandomWorker
from tests.pool.scripted import Audits, sample_call, score_call
from tests.pool.staged import MODEL, WHOLE

_ENDS = {
    Reason.WORKER_DIED,
    Reason.WEIGHT_VERSION_MISMATCH,
    Reason.INTERNAL_ERROR,
    Reason.DEADLINE_EXCEEDED,
    Reason.READER_STALLED,
    Reason.CRASH_LOOP,
    Reason.DRAINING,
}
"""Of calls that were admitted."""


def info_of(version: int) -> EngineInfo:
    """Of a model that was loaded."""
    return replace(
        MODEL,
        weight_version=version,
        weights_digest=f"digest {version}",
        numerics_id=f"numerics {version}",
    )


@dataclass
class Reader:
    """A call's reader, and what came of the call."""

    context: AbstractAsyncContextManager[CallStream]
    stream: CallStream
    insists_on: int | None
    rows: dict[tuple[int, int], list[tuple[int, int]]] = field(default_factory=dict)
    """(row or token, version) of each item."""
    ended: set[tuple[int, int]] = field(default_factory=set)
    failed: set[tuple[int, int | None]] = field(default_factory=set)
    untaken: int = 0
    told: int | None = None
    end: Any = None

    def read(self) -> bool:
        """Reads an event; whether there was one."""
        event = self.stream.next_nowait()
        if event is None:
            return False
        assert self.end is None, "nothing follows the end"
        match event:
            case WeightsChanged(info):
                self.told = info.weight_version
            case ScoreSlice():
                item = event.group_index, event.completion_index
                assert round(event.block.logprobs[0] % 1 * 100) == event.weight_version
                self._note(item, event)
            case SampleSlice():
                self._note((event.prompt_index, event.sample_index), event)
            case ItemFailed(_, index, part):
                assert (index, part) not in self.ended | self.failed
                self.failed.add((index, part))
            case CallFinished() | CallFailed():
                self.end = event
        return True

    def _note(self, item: tuple[int, int], event: ScoreSlice | SampleSlice) -> None:
        assert item not in self.ended | self.failed, "an item ends once"
        found = self.rows.setdefault(item, [])
        assert event.start == len(found), "rows come in order, each once"
        version = event.weight_version
        assert self.told is None or version == self.told
        assert self.insists_on is None or version == self.insists_on
        if isinstance(event, ScoreSlice):
            assert all(v == version for _, v in found), "a completion never mixes weights"
        found.append((event.start, version))
        if event.last:
            self.ended.add(item)
        self.untaken += event.size

    def take(self) -> bool:
        """Whether something had been read."""
        size, self.untaken = self.untaken, 0
        if size:
            self.stream.taken(size)
        return bool(size)

    def check(self) -> None:
        """Of a call that has ended."""
        if isinstance(self.end, CallFailed):
            assert self.end.fault.reason in _ENDS
            return
        call = self.stream.call
        if isinstance(call, ScoreCall):
            items = {(g.index, c.index) for g in call.groups for c in g.completions}
        else:
            items = {(task.index, index) for task in call.prompts for index in task.sample_indices}
        assert items == self.ended | self.failed
        assert self.end.usage.head_rows == sum(map(len, self.rows.values()))


class Company:
    """A pool and what befalls it."""

    def __init__(self, seed: int) -> None:
        self.rng = np.random.default_rng(seed)
        self.workers: dict[int, RandomWorker] = {}
        self.errors: list[str] = []
        self.loaded = self.version = 1
        settings = PoolSettings(
            workers=int(self.rng.integers(1, 4)),
            max_queue_tokens=10**6,
            first_backoff=0.0,
            longest_backoff=0.0,
            crash_limit=4,
            stable_seconds=1e-4,
            audit=AuditSettings(rate=0.3),
        )
        self.audits = Audits()
        self.pool = WorkerPool(self._make, settings, "any", self.audits)
        self.readers: list[Reader] = []
        self.updates: list[asyncio.Task[None]] = []
        self.flushes: list[asyncio.Task[list[int]]] = []
        self.happened: list[str] = []

    def _make(self, index: int) -> RandomWorker:
        worker = RandomWorker(info_of(self.loaded), self.rng)
        worker.errors = self.errors
        self.workers[index] = worker
        return worker

    def chance(self, share: float) -> bool:
        return bool(self.rng.random() < share)

    def any_of(self, things: list[Any]) -> Any:
        return things[int(self.rng.integers(len(things)))]

    async def befall(self) -> None:
        """One thing happens."""
        what = [
            *[self.call] * 6,
            *[self.compute] * 60,
            *[self.read] * 15,
            *[self.take] * 4,
            *[self.push] * 2,
            self.abort,
            self.cancel_push,
            self.kill,
            self.crash,
            self.hang,
            self.replace_model,
            self.fail_step,
            self.leave,
            self.expire,
            self.stall,
            self.pause,
            self.resume,
            self.flush,
        ]
        chosen = self.any_of(what)
        if chosen not in (self.compute, self.read, self.take):
            self.happened.append(chosen.__name__)
        await chosen()
        await settled()

    async def call(self) -> None:
        call_id = self.pool.new_call_id()
        made: Call
        if self.chance(0.5):
            lengths = [int(n) for n in self.rng.integers(1, 90, int(self.rng.integers(1, 6)))]
            made = score_call(call_id, [1] * int(self.rng.integers(1, 9)), *lengths)
        else:
            made = sample_call(call_id, int(self.rng.integers(1, 80)), int(self.rng.integers(1, 9)))
        made = replace(made, priority=int(self.any_of([0, 0, 0, 1, -1])))
        version = self.pool.weight_version
        insists_on = version if self.chance(0.3) else None

        def accepts(info: EngineInfo) -> bool:
            return info.weight_version == insists_on

        context = self.pool.run(
            made, self.any_of(["a", "b", "c"]), accepts=None if insists_on is None else accepts
        )
        with suppress(ServiceError):
            stream = await context.__aenter__()
            self.readers.append(Reader(context, stream, insists_on, told=version))

    async def compute(self) -> None:
        for _ in range(4):
            working = [worker for worker in self.workers.values() if worker.has_work]
            if working:
                self.any_of(working).go_on()
                await asyncio.sleep(0)

    async def read(self) -> None:
        if self.readers:
            reader = self.any_of(self.readers)
            while reader.read() and self.chance(0.9):
                pass

    async def take(self) -> None:
        if self.readers:
            self.any_of(self.readers).take()

    async def push(self) -> None:
        self.version += 1
        options = UpdateOptions(
            self.version,
            partial=self.chance(0.3),
            running_samples=RunningSamples(self.any_of(["finish", "continue", "abort"])),
            staging=Staging(self.any_of(["auto", "beside", "in_place"])),
        )

        async def run() -> None:
            with suppress(ServiceError):
                update = self.pool.weights.begin(options, "")
                if not options.partial:
                    update.take(WHOLE, "chunk")
                await update.commit()

        self.updates.append(asyncio.create_task(run()))

    async def abort(self) -> None:
        with suppress(ServiceError):
            self.pool.weights.abort("")

    async def cancel_push(self) -> None:
        if self.updates:
            self.updates[-1].cancel()

    async def kill(self) -> None:
        self.any_of(list(self.workers.values())).kill()

    async def crash(self) -> None:
        self.any_of(list(self.workers.values())).end("SIGSEGV", from_outside=False)

    async def hang(self) -> None:
        self.any_of(self.pool.workers).kill("it hung")

    async def replace_model(self) -> None:
        """What workers load from now on is another model; none is left of those that ran."""
        self.version += 1
        self.loaded = self.version
        for worker in list(self.workers.values()):
            worker.kill()

    async def fail_step(self) -> None:
        worker = self.any_of(list(self.workers.values()))
        if not worker.is_gone:
            worker.fail_step()

    async def leave(self) -> None:
        if self.readers:
            reader = self.any_of(self.readers)
            self.readers.remove(reader)
            await reader.context.__aexit__(None, None, None)

    async def expire(self) -> None:
        if self.readers:
            self.pool._calls.ends.expire(self.any_of(self.readers).stream)

    async def stall(self) -> None:
        """A reader took nothing for too long."""
        reader = self.any_of(self.readers) if self.readers else None
        if reader is not None and reader.stream.unread and reader.end is None:
            fault = Fault(Reason.READER_STALLED, "")
            self.pool._calls.ends.stalled(reader.stream, fault)

    async def pause(self) -> None:
        self.pool.pause()

    async def resume(self) -> None:
        self.pool.resume()

    async def flush(self) -> None:
        async def run() -> list[int]:
            ready = [worker for worker in self.pool.workers if worker.is_ready]
            return await self.pool.cache.flush(ready)

        self.flushes.append(asyncio.create_task(run()))

    async def come_to_rest(self) -> None:
        """Nothing befalls it any more: workers compute, and readers read, all that there is."""
        self.pool.resume()
        still = 0
        for _ in range(20_000):
            await settled()
            moved = False
            for worker in list(self.workers.values()):
                if worker.has_work:
                    worker.go_on()
                    moved = True
            for reader in self.readers:
                moved = reader.read() or reader.take() or moved
            if not all(task.done() for task in (*self.updates, *self.flushes)):
                await asyncio.sleep(0.001)  # threads write their tensors, on a busy machine late
                moved = True
            still = 0 if moved or self.pool._calls._auditor._tasks else still + 1
            if still == 3:
                return
        raise AssertionError("it comes to no rest")

    def check(self) -> None:
        """Everything has ended, and nothing is held."""
        pool = self.pool
        calls = pool._calls
        assert not self.errors
        assert all(reader.end is not None for reader in self.readers)
        assert not calls.streams
        assert all(task.done() for task in [*self.updates, *self.flushes])
        assert pool.weights.update is None
        for reader in self.readers:
            reader.check()
        assert {outcome for outcome, _ in self.audits.seen} <= {
            "same", "refused", "failed", "skipped"
        }  # fmt: skip

    async def drain(self, is_drained: bool) -> None:
        """New calls are refused, and those that were admitted end."""
        if is_drained:
            await self.pool.drain(60.0)

    async def all_leave(self) -> None:
        for reader in self.readers:
            await reader.context.__aexit__(None, None, None)
        self.readers = []
        await self.come_to_rest()

    def check_nothing_is_held(self) -> None:
        pool = self.pool
        calls = pool._calls
        assert pool.calls_left == 0
        assert (pool.queued_tokens, pool.taken_tokens, calls.admission.reply_bytes) == (0, 0, 0)
        assert not calls.admission._by_client
        dispatcher = calls.dispatcher
        assert (dispatcher.unread, dispatcher._replies._by_client) == (0, {})
        assert not dispatcher._queue._clients
        assert not dispatcher._held_back
        assert not dispatcher._set_aside
        assert dispatcher._next is None
        for worker in pool.workers:
            assert not worker.parts
            assert worker.work.all == Taken()
            assert not worker.work._by_priority
            assert not worker.staging or pool.state is PoolState.DRAINING
        sets = pool.weights.weight_sets
        assert not sets.older
        assert not sets._letting_go
        assert sets.current is None or sets.current.uses == 0


async def settled() -> None:
    for _ in range(8):
        await asyncio.sleep(0)


@pytest.mark.parametrize("first", range(0, int(short_or_long(60, 6000)), 20))
async def test_every_call_ends_and_nothing_is_left(
    first: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reply_memory, "MAX_BYTES", 100 * SLICE_BYTES)
    for seed in range(first, first + 20):
        company = Company(seed)
        company.pool.start()
        try:
            await company.come_to_rest()
            for _ in range(int(company.rng.integers(20, 400))):
                await company.befall()
            draining = asyncio.create_task(company.drain(company.chance(0.3)))
            await company.come_to_rest()
            company.check()
            await company.all_leave()
            await draining
            company.check_nothing_is_held()
        except BaseException as error:
            error.add_note(f"seed {seed}: {' '.join(company.happened)}")
            raise
        finally:
            await company.pool.drain(0.0)
