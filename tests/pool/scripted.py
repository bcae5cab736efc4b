"""Workers that do what a test tells them, in place of a model."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any, ClassVar

import numpy as np
import pytest_asyncio

from scoring_service.engine.events import (
    CallFailed,
    CallFinished,
    CallStarted,
    Cancel,
    Command,
    LoadProgress,
    Ready,
    SampleSlice,
    ScoreSlice,
    StreamEvent,
    Submit,
)
from scoring_service.engine.outputs.row_slices import wanted_rows
from scoring_service.errors import Reason
from scoring_service.pool.observer import PoolObserver
from scoring_service.pool.pool import WorkerPool
from scoring_service.pool.settings import PoolSettings
from scoring_service.pool.streams.stream import CallStream
from scoring_service.pool.workers.executor import OnEvent, WorkerExited
from scoring_service.pool.workers.readiness import PoolState
from scoring_service.types import (
    Call,
    CompletionTask,
    EngineInfo,
    GroupTask,
    Processing,
    RowBlock,
    RowWants,
    SampleCall,
    SamplingTask,
    ScoreCall,
    Usage,
)

INFO = EngineInfo(
    architecture="scripted",
    vocab_size=100,
    parameter_count=0,
    max_sequence_tokens=10_000,
    weight_version=1,
    weights_digest="d",
    dtype="float32",
    residual_dtype="float32",
    head_dtype="float32",
    backend="none",
    device="cpu",
    deterministic=True,
    numerics_id="n",
    packed=True,
    path_reason="",
    chunk_size=4,
    eos_token_ids=(),
    max_batch_tokens=16,
)


class ScriptedExecutor:
    """Ready at once; keeps what it was given until the test lets it answer."""

    def __init__(self, info: EngineInfo = INFO) -> None:
        self.info = info
        self.calls: dict[int, Call] = {}
        self.credits: dict[int, int | None] = {}
        self.cancelled: list[int] = []
        self.alone: set[int] = set()
        self.killed = False
        self.ready_at_once = True
        self.begins: LoadProgress | None = None
        """What it says first, if anything."""
        self.refusal: OSError | None = None
        """Why it cannot be started."""
        self.offset = 0.0
        self.row_bytes = 4

    def start(self, on_event: OnEvent) -> None:
        self.on_event = on_event
        if self.refusal is not None:
            raise self.refusal
        if self.begins is not None:
            on_event(self.begins)
        if self.ready_at_once:
            on_event(Ready(self.info))

    def send(self, command: Command) -> None:
        if isinstance(command, Submit):
            self.calls[command.call.call_id] = command.call
            self.credits[command.call.call_id] = command.credit
            if command.alone:
                self.alone.add(command.call.call_id)
        elif isinstance(command, Cancel):
            self.cancelled.append(command.call_id)
            self.calls.pop(command.call_id, None)

    def kill(self) -> None:
        self.killed = True
        self.die("SIGKILL", from_outside=True)

    def stop(self, timeout: float) -> None:
        """Nothing to end."""

    def die(self, how: str = "exit code 1", *, from_outside: bool = False) -> None:
        self.calls.clear()
        self.on_event(WorkerExited(how, from_outside))

    def score(self, call_id: int, most_rows: int | None = None) -> int:
        """Answers rows of a call, one a slice, each with its index as log-prob; how many."""
        call = self.calls[call_id]
        assert isinstance(call, ScoreCall)
        sent = 0
        self.on_event(CallStarted(call_id))
        for group in call.groups:
            for completion in group.completions:
                rows = wanted_rows(completion, call.next_token).tolist()
                for place, row in enumerate(rows):
                    if sent == most_rows:
                        return sent
                    block = RowBlock(1, np.array([row + self.offset], dtype=np.float32))
                    last = place + 1 == len(rows)
                    self.on_event(
                        ScoreSlice(
                            call_id, group.index, completion.index, 0, len(group.prompt_ids), row,
                            block, last, 1, self.row_bytes,
                        )
                    )  # fmt: skip
                    sent += 1
        self.finish(call_id)
        return sent

    def draw(self, call_id: int, most_tokens: int | None = None) -> int:
        """Draws samples token by token: each token is its position; how many."""
        call = self.calls[call_id]
        assert isinstance(call, SampleCall)
        sent = 0
        for task in call.prompts:
            for index in task.sample_indices:
                for place in range(len(task.drawn_before(index)), task.max_tokens):
                    if sent == most_tokens:
                        return sent
                    last = place + 1 == task.max_tokens
                    one = np.array([place], dtype=np.int32)
                    self.on_event(
                        SampleSlice(
                            call_id, task.index, index, 0, 1, task.seed, place, last, one,
                            one.astype(np.float32), one.astype(np.float32), None, None, "",
                            "length" if last else None, None, 1, 12,
                        )
                    )  # fmt: skip
                    sent += 1
        self.finish(call_id)
        return sent

    def finish(self, call_id: int) -> None:
        call = self.calls.pop(call_id)
        self.on_event(CallFinished(call_id, Usage(computed_tokens=call.tokens, head_rows=1)))


class Scripted:
    """A pool of scripted workers; `workers[i]` is the one that runs now in slot i."""

    make_executor: ClassVar[Callable[[], ScriptedExecutor]] = ScriptedExecutor
    running: ClassVar[list[Scripted]] = []
    """To be ended with their test: all tests share one event loop, where they would live on."""

    def __init__(self, count: int, observer: PoolObserver | None = None, **settings: Any) -> None:
        self.starts: list[list[ScriptedExecutor]] = [[] for _ in range(count)]
        self.prepare: Callable[[ScriptedExecutor], None] = lambda _executor: None
        fields = {"max_queue_tokens": 10_000, "first_backoff": 0.01, "look_seconds": 0.05}
        self.pool = WorkerPool(
            self._make, PoolSettings(workers=count, **fields | settings), "scripted", observer
        )

    def _make(self, index: int) -> ScriptedExecutor:
        executor = self.make_executor()
        self.prepare(executor)
        self.starts[index].append(executor)
        return executor

    @property
    def workers(self) -> list[ScriptedExecutor]:
        return [started[-1] for started in self.starts]

    @property
    def busy(self) -> list[int]:
        return [index for index, worker in enumerate(self.workers) if worker.calls]

    async def start(self) -> Scripted:
        self.running.append(self)
        self.pool.start()
        await settled()
        return self


class Audits(PoolObserver):
    """Keeps what came of each audit, and by how much it differed."""

    def __init__(self) -> None:
        self.seen: list[tuple[str, float | None]] = []

    def audited(self, outcome: str, difference: float | None = None) -> None:
        self.seen.append((outcome, difference))


@pytest_asyncio.fixture(autouse=True)
async def scripted_pools_end() -> AsyncIterator[None]:
    """Ends every pool of scripted workers that a test has started."""
    yield
    while Scripted.running:
        await Scripted.running.pop().pool.drain(0.0)


async def settled() -> None:
    """Lets everything that is under way in the event loop arrive."""
    for _ in range(5):
        await asyncio.sleep(0)


async def until_changed(pool: WorkerPool, condition: Callable[[], bool]) -> None:
    """Waits until something holds, asked anew whenever the pool changes."""
    async with asyncio.timeout(60):
        while not condition():
            await pool.wait_changed()


async def until_state(pool: WorkerPool, *states: PoolState) -> None:
    """Waits until the pool is in one of these states."""
    await until_changed(pool, lambda: pool.state in states)


async def until(condition: Callable[[], bool]) -> None:
    """Waits for what nobody tells of, however busy the machine is."""
    async with asyncio.timeout(60):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.01)


def drain(stream: CallStream) -> list[StreamEvent]:
    """What the reader has not taken yet."""
    events = []
    while (event := stream.next_nowait()) is not None:
        events.append(event)
    return events


def rows(events: Sequence[StreamEvent]) -> list[tuple[int, float]]:
    """(completion, its log-prob) of each row in turn."""
    return [
        (event.completion_index, float(event.block.logprobs[0]))
        for event in events
        if isinstance(event, ScoreSlice)
    ]


def fault(events: Sequence[StreamEvent]) -> Reason:
    """Why a call failed, once and at its end."""
    (failed,) = [event for event in events if isinstance(event, CallFailed)]
    assert events[-1] is failed
    return failed.fault.reason


def score_call(
    call_id: int, prompt: list[int], *lengths: int, priority: int = 0, **fields: Any
) -> ScoreCall:
    completions = tuple(
        CompletionTask(i, np.arange(n, dtype=np.int32), ((0, n),)) for i, n in enumerate(lengths)
    )
    group = GroupTask(0, np.array(prompt, dtype=np.int32), completions, Processing(), 0)
    return ScoreCall(call_id, (group,), RowWants(), priority=priority, **fields)


def sample_call(call_id: int, n: int, max_tokens: int) -> SampleCall:
    task = SamplingTask(0, np.array([1], dtype=np.int32), n, 5, 0, Processing(), 0, max_tokens)
    return SampleCall(call_id, (task,))
