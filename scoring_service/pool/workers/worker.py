"""One worker of a pool: started, watched, ended, started again."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import structlog

from scoring_service.engine.events import (
    BugReport,
    CacheFlushed,
    Command,
    Event,
    Heartbeat,
    LoadFailed,
    LoadProgress,
    Ready,
    WeightsDropped,
    WeightsFailed,
    WeightsFilled,
    WeightsStaged,
    WorkerStats,
)
from scoring_service.pool.settings import PoolSettings
from scoring_service.pool.streams.stream import Part
from scoring_service.pool.workers.executor import Executor, WorkerExited
from scoring_service.pool.workers.owner import Owner, WorkerState
from scoring_service.pool.workers.restarts import RestartPolicy
from scoring_service.pool.workers.routing import PrefixIndex
from scoring_service.pool.workers.run import Run
from scoring_service.pool.workers.workload import Workload

log = structlog.get_logger(__name__)


@dataclass(eq=False, slots=True)
class Worker:
    """A slot for one worker, and whatever runs in it at the time. Lives in the event loop."""

    index: int
    make_executor: Callable[[int], Executor]
    settings: PoolSettings
    owner: Owner
    state: WorkerState = WorkerState.LOADING
    stage: str = "starting the worker"
    last_death: str = ""
    starts: int = 0
    restart_seconds: float = 5.0
    """From a start to ready, as last measured."""
    parts: dict[int, Part] = field(default_factory=dict)
    """Under way here."""
    work: Workload = field(default_factory=Workload)
    """What those parts take."""
    weights: set[int] = field(default_factory=set)
    """Numbers of the weights that it can compute with."""
    staging: set[int] = field(default_factory=set)
    """Numbers of those that it reads, or may be reading."""
    prefixes: PrefixIndex = field(default_factory=PrefixIndex)
    stats: WorkerStats = field(default_factory=WorkerStats)
    policy: RestartPolicy = field(init=False)
    _run: Run = field(init=False)
    """The last start."""
    _due: float = 0.0
    """When it was started, or is to be started again."""

    def __post_init__(self) -> None:
        self.policy = RestartPolicy(self.settings)
        self._run = self._new_run(None)

    def start(self) -> None:
        """Starts it; its model loads in the background."""
        loop = asyncio.get_running_loop()
        executor = self.make_executor(self.index)
        self._run = run = self._new_run(executor)
        self._due = run.started
        self.starts += 1

        def on_event(event: Event | WorkerExited) -> None:
            if not loop.is_closed():
                loop.call_soon_threadsafe(self._handle, run, event)

        self._set(WorkerState.LOADING, "starting the worker")
        try:
            executor.start(on_event)
        except OSError as error:
            reason = error.strerror or str(error)
            self._exited(WorkerExited(reason, started=False))
            return
        run.beside(run.watch, "watch of a worker")

    def send(self, command: Command) -> None:
        """Hands it a command."""
        executor = self._run.executor
        if executor is not None and not self._run.killed:
            executor.send(command)

    def kill(self, reason: str, *, useless: bool = True) -> None:
        """Ends it, and gives its parts away at once; once it is gone it is started again.

        A process that waits in a driver is not gone before the driver answers, if it ever does.

        Args:
            reason: in words that go on from "killed:".
            useless: whether the next one may well end like this too.
        """
        run = self._run
        if run.executor is None or run.killed:
            return
        run.killed, run.useless = True, useless
        run.executor.kill()
        if self.state is WorkerState.GIVEN_UP:
            return
        self._lost(WorkerExited(f"killed: {reason}"))
        if self.state is WorkerState.DOWN:
            self._set(WorkerState.DOWN, f"{self.stage}; it is tried again once it is gone")
            run.beside(run.tell_if_it_stays, "end of a worker")

    async def stop(self, patience: float) -> None:
        """Ends it for good, by force after so many seconds."""
        executor, loading = self._run.stop(), self.state is not WorkerState.READY
        self.state = WorkerState.GIVEN_UP
        if executor is not None:
            # A worker that loads does not listen, and has nothing to finish.
            await asyncio.to_thread(executor.stop, 0.0 if loading else patience)

    def answers(self) -> None:
        """It takes parts from now on."""
        self._run.ready_since = time.monotonic()
        self.restart_seconds = self._run.ready_since - self._run.started
        self.state, self.stage = WorkerState.READY, "ready"

    def loads_on(self, stage: str) -> None:
        """It has loaded a model, but not yet what it is to answer with: it has answered nothing."""
        self._run.ready_since = None
        self.state, self.stage = WorkerState.LOADING, stage

    @property
    def is_ready(self) -> bool:
        """Whether it answers."""
        return self.state is WorkerState.READY

    @property
    def said_nothing(self) -> bool:
        """Whether it was killed because it never said a first word."""
        return self._run.said_nothing

    @property
    def seconds_to_ready(self) -> float:
        """Until it should answer again, if it does not now."""
        if self.state is WorkerState.READY:
            return 0.0
        return max(0.5, self._due + self.restart_seconds - time.monotonic())

    def take(self, part: Part) -> None:
        """Counts a part in."""
        self.parts[part.part_id] = part
        part.worker = self.index
        self.work.weigh(part)

    def drop(self, part: Part) -> None:
        """Counts a part out."""
        if self.parts.pop(part.part_id, None) is not None:
            self.work.forget(part)
            part.worker = None

    def _set(self, state: WorkerState, stage: str) -> None:
        self.state, self.stage = state, stage
        self.owner.worker_changed()

    def _new_run(self, executor: Executor | None) -> Run:
        return Run(self.index, self.settings, lambda: self.kill("it hung"), executor)

    def _handle(self, run: Run, event: Event | WorkerExited) -> None:
        if run is not self._run or run.executor is None:
            return
        if run.killed and not isinstance(event, WorkerExited):
            return  # its parts are others' by now
        run.last_heard = time.monotonic()
        match event:
            case LoadProgress(stage):
                log.info("loading", worker=self.index, stage=stage)
                self._set(WorkerState.LOADING, stage)
            case Ready(info):
                self.answers()
                backend, why = info.backend, info.path_reason
                log.info("loaded", worker=self.index, backend=backend, path_reason=why)
                self.owner.worker_ready(self, info)
            case LoadFailed(message):
                self.owner.worker_refused(self, message)
            case Heartbeat():
                self.stats = event.stats
                run.in_step(event.in_step_seconds)
            case WorkerExited():
                self._exited(event)
            case WeightsStaged() | WeightsFailed() | WeightsFilled() | WeightsDropped():
                self.owner.weight_event(self, event)
            case BugReport(request_id, traceback):
                log.error("bug", worker=self.index, request_id=request_id, exception=traceback)
            case CacheFlushed(pages):
                self.owner.cache_flushed(self, pages)
            case _:
                self.owner.part_event(self, event)

    def _lost(self, event: WorkerExited) -> None:
        """It computes nothing any more: what it had is the pool's."""
        self._run.lost()
        self.last_death = event.description
        self.prefixes.clear()
        # What it counted stays until the next one counts; pages it has none.
        self.stats = replace(self.stats, pages=0, free_pages=0)
        self.state, self.stage = WorkerState.DOWN, event.in_words()
        self.owner.worker_lost(self, event)

    def _exited(self, event: WorkerExited) -> None:
        run = self._run
        run.executor = None
        if self.state is WorkerState.GIVEN_UP:
            return  # it was given up when it said that it cannot load its model
        if not run.killed:
            self._lost(event)
        if self.state is not WorkerState.DOWN:
            return  # the pool gave it up
        pause = self.policy.died(
            # One that hangs, or loads another model, is of no more use the next time.
            from_outside=event.from_outside and not run.useless,
            answered_seconds=run.answered_seconds,
            maybe_memory=event.maybe_memory,
        )
        log.error(
            "worker_died" if event.started else "worker_not_started",
            worker=self.index,
            how=event.description,
            restart_in=pause,
            crashes=self.policy.crashes,
        )
        self._due = time.monotonic() + pause
        self._set(WorkerState.DOWN, f"{event.in_words()}; it is tried again")
        run.beside(lambda: self._start_later(pause), "restart of a worker")

    async def _start_later(self, pause: float) -> None:
        await asyncio.sleep(pause)
        self.start()
