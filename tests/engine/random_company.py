"""Calls in random company, on one or two engines, as a pool treats them.

Readers that stall, callers that leave or come too late, steps that fail, engines that die, weights
that change while samples are drawn, caches that are emptied. What is left of a call that lost its
engine goes on elsewhere, as `Delivered` has it.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from scoring_service.engine.events import (
    CallEvent,
    CallFailed,
    CallFinished,
    CallStarted,
    ItemFailed,
    SampleSlice,
    ScoreSlice,
)
from scoring_service.engine.packed.engine import PackedEngine
from scoring_service.engine.runner import INITIAL_CREDIT
from scoring_service.engine.weights.model_weights import ModelWeights
from scoring_service.engine.worker.service_loop import CallRunner
from scoring_service.errors import Reason
from scoring_service.pool.streams.delivered import Delivered
from scoring_service.types import Call, SampleCall
from tests.engine.soundness import assert_sound

Slice = ScoreSlice | SampleSlice

_LATE = 0.03
"""Seconds until the caller of some calls no longer waits."""


@dataclass(eq=False)
class Job:
    """A call, and what of it an engine has."""

    call: Call
    """As it was made."""
    part: Call
    engine: CallRunner
    weights: ModelWeights
    alone: bool = False
    slices: list[Slice] = field(default_factory=list)
    delivered: Delivered = field(default_factory=Delivered)
    """Of the part."""
    unread: int = 0
    """Bytes that its reader did not take yet."""
    faults: set[tuple[int, int]] = field(default_factory=set)
    """Completions and samples that failed alone."""
    end: str = ""
    """answered, late, left or failed; empty while it goes on."""

    def of(self, *item: int) -> list[Any]:
        """Slices of a completion or a sample."""
        return [s for s in self.slices if _item_of(s) == item]


def _item_of(piece: Slice) -> tuple[int, int]:
    if isinstance(piece, ScoreSlice):
        return piece.group_index, piece.completion_index
    return piece.prompt_index, piece.sample_index


class _InjectedError(Exception):
    pass


class Company:
    """Runs calls to their ends.

    Args:
        rng: decides everything.
        make_engine: an engine with nothing in it.
        versions: of the weights; the first one answers first.
    """

    def __init__(
        self,
        rng: np.random.Generator,
        make_engine: Callable[[], CallRunner],
        versions: Sequence[ModelWeights],
    ) -> None:
        self.jobs: list[Job] = []
        self.happened: dict[str, int] = {}
        """How often what happened."""
        self._rng = rng
        self._make_engine = make_engine
        self.engines = [self._fallible(make_engine()) for _ in range(int(rng.integers(1, 3)))]
        self._versions = versions
        self._version = 0
        self._ids = itertools.count(1)
        self._running: dict[int, Job] = {}
        """By the ids of their parts."""

    def run(self, calls: Sequence[Call]) -> None:
        """Submits them at random times, and goes on until all have ended."""
        waiting = list(calls)
        for _ in range(30_000):
            stands_still = not any(engine.can_step for engine in self.engines)
            if waiting and (stands_still or self._rng.random() < 0.4):
                # Some come at the same moment.
                for _ in range(int(self._rng.choice([1, 1, 2, 4]))):
                    if waiting:
                        self._submit(waiting.pop(0))
            self._disturb()
            for engine in list(self.engines):
                if engine.can_step:
                    self._take(engine.step(), engine)
                    if isinstance(engine, PackedEngine):
                        assert_sound(engine)
            stands_still = not any(engine.can_step for engine in self.engines)
            if stands_still or self._rng.random() < 0.3:
                unread = [job for job in self._running.values() if job.unread]
                assert unread or waiting or not (stands_still and self._running), "it stands still"
                self._read(unread)
            if not (waiting or self._running):
                return
        raise AssertionError("they never end")

    def _count(self, what: str) -> None:
        self.happened[what] = self.happened.get(what, 0) + 1

    def _any_engine(self) -> CallRunner:
        return self.engines[self._rng.integers(len(self.engines))]

    def _submit(self, call: Call) -> None:
        if self._rng.random() < 0.05:
            call = replace(call, deadline=time.monotonic() + _LATE)
        job = Job(call, call, self._any_engine(), self._versions[self._version])
        self.jobs.append(job)
        self._begin(job, call)

    def _begin(self, job: Job, part: Call) -> None:
        job.part, job.delivered = replace(part, call_id=next(self._ids)), Delivered()
        part_id = job.part.call_id
        self._running[part_id] = job
        job.engine.submit(job.part, job.weights, job.alone)
        job.unread = 0
        if self._rng.random() < 0.3:
            # Its reader takes little at first.
            few = int(self._rng.integers(1, 3000))
            job.engine.add_credit(part_id, few - INITIAL_CREDIT)
            job.unread = INITIAL_CREDIT - few

    def _stop(self, job: Job, end: str) -> None:
        del self._running[job.part.call_id]
        job.end = end
        self._count(end)

    def _go_on(self, job: Job, engine: CallRunner) -> None:
        """What is left of a job whose part is over."""
        del self._running[job.part.call_id]
        left = job.delivered.remainder(job.part)
        if left is None:
            job.end = "answered"
            return
        job.engine = engine
        self._begin(job, left)

    def _read(self, jobs: Iterable[Job]) -> None:
        for job in jobs:
            job.engine.add_credit(job.part.call_id, job.unread)
            job.unread = 0

    def _take(self, events: Iterable[CallEvent], engine: CallRunner) -> None:
        for event in events:
            job = self._running[event.call_id]
            assert job.engine is engine
            job.delivered.note(event)
            match event:
                case ScoreSlice() | SampleSlice():
                    assert event.weight_version == job.weights.version
                    job.slices.append(event)
                    job.unread += event.size
                case ItemFailed(_, index, int(part), fault):
                    assert fault.reason is Reason.NON_FINITE_LOGITS
                    assert (index, part) not in job.faults
                    job.faults.add((index, part))
                    self._count("fault of an item")
                case CallFinished():
                    self._stop(job, "answered")
                case CallFailed(_, fault, shared_step):
                    self._failed(job, fault.reason, shared_step)
                case _:
                    assert isinstance(event, CallStarted), event

    def _failed(self, job: Job, reason: Reason, shared_step: bool) -> None:
        if reason is Reason.DEADLINE_EXCEEDED:
            assert job.call.deadline < time.monotonic()
            self._stop(job, "late")
            return
        assert reason is Reason.INTERNAL_ERROR
        if shared_step:
            job.alone = True
            self._count("again alone")
            self._go_on(job, job.engine)
        else:
            self._stop(job, "failed")

    def _disturb(self) -> None:
        rng = self._rng
        if rng.random() < 0.01:
            self._leave(rng.choice([*self._running, 0]))
        if rng.random() < 0.02:
            self._count("flush")
            self._any_engine().flush_cache()
        if rng.random() < 0.01:
            self._die(int(rng.integers(len(self.engines))))
        if rng.random() < 0.02 and self._version + 1 < len(self._versions):
            self._update(str(rng.choice(["finish", "continue", "abort"], p=[0.45, 0.45, 0.1])))

    def _leave(self, part_id: int) -> None:
        if job := self._running.get(part_id):
            job.engine.cancel(part_id)
            self._stop(job, "left")

    def _die(self, place: int) -> None:
        self._count("death")
        dead = self.engines[place]
        self.engines[place] = self._fallible(self._make_engine())
        for job in [job for job in self._running.values() if job.engine is dead]:
            self._go_on(job, self._any_engine())

    def _update(self, policy: str) -> None:
        self._count(policy)
        self._version += 1
        running = [job for job in self._running.values() if isinstance(job.call, SampleCall)]
        for job in running if policy != "finish" else []:
            job.engine.cancel(job.part.call_id)
            if policy == "abort":
                self._stop(job, "left")
            else:
                job.weights = self._versions[self._version]
                self._go_on(job, job.engine)

    def _fallible(self, engine: CallRunner) -> CallRunner:
        """Few of its steps fail: before the model runs, behind it, or when all is answered."""
        if not isinstance(engine, PackedEngine):
            return engine
        run_body, compute = engine._run_body, engine._compute

        def fails() -> None:
            if self._rng.random() < 0.0015:
                self._count("failed step")
                raise _InjectedError

        def fallible_body(plan: Any) -> Any:
            fails()
            found = run_body(plan)
            fails()
            return found

        def fallible_compute(plan: Any) -> Any:
            found = compute(plan)
            fails()
            return found

        engine._run_body, engine._compute = fallible_body, fallible_compute  # type: ignore[method-assign]
        return engine
