"""Workers without a model that do what they were told when it pleases a random generator."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from scoring_service.engine.events import (
    LOADED,
    ApplyWeights,
    CacheFlushed,
    CallFailed,
    CallFinished,
    CallStarted,
    Cancel,
    Command,
    Credit,
    DropWeights,
    FillWeights,
    FlushCache,
    Ready,
    SampleSlice,
    ScoreSlice,
    StageWeights,
    Submit,
    WeightsDropped,
    WeightsFailed,
    WeightsFilled,
    WeightsStaged,
)
from scoring_service.engine.outputs.row_slices import wanted_rows
from scoring_service.errors import Fault, Reason
from scoring_service.pool.workers.executor import OnEvent, WorkerExited
from scoring_service.types import Call, EngineInfo, RowBlock, ScoreCall, Usage

SLICE_BYTES = 200_000
"""Of a row or a token, so that few of them use up a part's credit."""


@dataclass(eq=False)
class Running:
    """A part, as a worker has it."""

    submit: Submit
    slices: Iterator[Any]
    credit: int
    answered: int = 0


class RandomWorker:
    """Obeys in order, computes and stages in any."""

    def __init__(self, info: EngineInfo, rng: np.random.Generator) -> None:
        self._info = info
        self._rng = rng
        self.commands: deque[Command] = deque()
        self.running: dict[int, Running] = {}
        self.staging: dict[int, StageWeights] = {}
        self.filling: list[FillWeights] = []
        self.held = {LOADED: info.weight_version}
        """Number of weights -> their version."""
        self.is_ready = self.is_gone = False
        self.usable = bool(rng.random() < 0.7)
        self.errors: list[str] = []
        self._staged: dict[int, StageWeights] = {}

    def start(self, on_event: OnEvent) -> None:
        self._tell = on_event

    def send(self, command: Command) -> None:
        if not self.is_gone:
            self.commands.append(command)

    def kill(self) -> None:
        self.end("SIGKILL", from_outside=True)

    def stop(self, timeout: float) -> None:
        self.is_gone = True

    def end(self, how: str, *, from_outside: bool) -> None:
        if not self.is_gone:
            self.is_gone = True
            self._tell(WorkerExited(how, from_outside))

    @property
    def has_work(self) -> bool:
        """Whether something would come of going on."""
        if self.is_gone:
            return False
        can_run = any(run.credit > 0 for run in self.running.values())
        return not self.is_ready or bool(self.commands or self.staging or self.filling or can_run)

    def go_on(self) -> None:
        """Does one thing of those that it could."""
        doable: list[Callable[[], None]] = []
        if not self.is_ready:
            doable.append(self._load)
        else:
            if self.commands:
                doable += [self._obey] * 3
            if self.staging:
                doable.append(self._stage)
            if self.filling:
                doable.append(self._fill)
            doable += [
                lambda run=run: self._compute(run)
                for run in self.running.values()
                if run.credit > 0
            ]
        doable[int(self._rng.integers(len(doable)))]()

    def fail_step(self) -> None:
        """What it computes fails, in company or alone."""
        runs = [run for run in self.running.values() if run.credit > 0]
        fault = Fault(Reason.INTERNAL_ERROR, "a bug")
        for run in runs:
            del self.running[run.submit.call.call_id]
            shared = len(runs) > 1
            self._tell(CallFailed(run.submit.call.call_id, fault, shared_step=shared))

    def _load(self) -> None:
        self.is_ready = True
        self._tell(Ready(self._info))

    def _obey(self) -> None:
        command = self.commands.popleft()
        match command:
            case Submit(call):
                if command.weights not in self.held:
                    self.errors.append(f"{command.weights} is not of {sorted(self.held)}")
                slices = self._slices(call, self.held[command.weights])
                self.running[call.call_id] = Running(command, slices, command.credit or 0)
            case Cancel(call_id):
                self.running.pop(call_id, None)
            case Credit(call_id, size):
                if call_id in self.running:
                    self.running[call_id].credit += size
            case StageWeights(weights):
                self.staging[weights] = command
            case ApplyWeights(weights):
                self._apply(weights)
            case FillWeights():
                assert command.source in self.held
                self.filling.append(command)
            case DropWeights(weights):
                self.staging.pop(weights, None)
                self.held.pop(weights, None)
                self.filling = [fill for fill in self.filling if fill.weights != weights]
                if any(run.submit.weights == weights for run in self.running.values()):
                    self.errors.append(f"{weights} was dropped under a part")
                self._tell(WeightsDropped(weights))
            case FlushCache():
                self._tell(CacheFlushed(1))

    def _apply(self, weights: int) -> None:
        if self.running:
            self.errors.append("weights are written over those of running parts")
        self.held = {weights: self._staged[weights].version}
        self._tell_staged(weights, usable=True)

    def _stage(self) -> None:
        weights = list(self.staging)[int(self._rng.integers(len(self.staging)))]
        command = self.staging.pop(weights)
        if self._rng.random() < 0.03:
            self._tell(WeightsFailed(weights, "OSError: gone"))
            return
        self._staged[weights] = command
        usable = self.usable and command.beside
        if usable:
            self.held[weights] = command.version
        self._tell_staged(weights, usable=usable)

    def _tell_staged(self, weights: int, *, usable: bool) -> None:
        version = self._staged[weights].version
        self._tell(WeightsStaged(weights, f"digest {version}", f"numerics {version}", usable))

    def _fill(self) -> None:
        self._tell(WeightsFilled(self.filling.pop().weights))

    def _compute(self, run: Running) -> None:
        call_id = run.submit.call.call_id
        if run.answered == 0:
            self._tell(CallStarted(call_id))
        for _ in range(int(self._rng.integers(1, 4))):
            piece = next(run.slices, None)
            if piece is None:
                del self.running[call_id]
                drawn = 0 if isinstance(run.submit.call, ScoreCall) else run.answered
                usage = Usage(sampled_tokens=drawn, head_rows=run.answered)
                self._tell(CallFinished(call_id, usage))
                return
            run.answered += 1
            run.credit -= piece.size
            self._tell(piece)

    def _slices(self, call: Call, version: int) -> Iterator[Any]:
        if isinstance(call, ScoreCall):
            for group in call.groups:
                for completion in group.completions:
                    rows = wanted_rows(completion, call.next_token).tolist()
                    for place, row in enumerate(rows):
                        block = RowBlock(1, np.array([row + version / 100], dtype=np.float32))
                        yield ScoreSlice(
                            call.call_id, group.index, completion.index, 0, len(group.prompt_ids),
                            row, block, place + 1 == len(rows), version, SLICE_BYTES,
                        )  # fmt: skip
            return
        lines = [
            (task, index, place)
            for task in call.prompts
            for index in task.sample_indices
            for place in range(len(task.drawn_before(index)), task.max_tokens)
        ]
        for task, index, place in sorted(lines, key=lambda line: line[2]):
            one = np.array([place], dtype=np.int32)
            last = place + 1 == task.max_tokens
            yield SampleSlice(
                call.call_id, task.index, index, 0, 1, task.seed, place, last, one,
                one.astype(np.float32), one.astype(np.float32), None, None, "",
                "length" if last else None, None, version, SLICE_BYTES,
            )  # fmt: skip
