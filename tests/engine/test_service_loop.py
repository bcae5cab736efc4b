"""The worker's loop: commands in, events out, in the order that the pool relies on."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from scoring_service.engine.events import (
    CallFinished,
    CallStarted,
    Cancel,
    Command,
    Event,
    LoadFailed,
    LoadProgress,
    Ready,
    SampleSlice,
    ScoreSlice,
    Shutdown,
    Submit,
)
from scoring_service.engine.runner import INITIAL_CREDIT
from scoring_service.engine.worker.monitor import Monitor
from scoring_service.engine.worker.service_loop import run_worker
from scoring_service.models import tiny_model_path
from scoring_service.types import (
    Call,
    EngineConfig,
    Processing,
    RowWants,
    SampleCall,
    SamplingTask,
    ScoreCall,
)
from tests.engine.scoring import completion, group


class Worker:
    """The loop in a thread."""

    def __init__(self, model: Path) -> None:
        self.commands: queue.SimpleQueue[Command] = queue.SimpleQueue()
        self.events: queue.SimpleQueue[Event] = queue.SimpleQueue()
        config = EngineConfig(model=str(model), device="cpu")
        arguments = (config, self.commands, self.events.put)
        self.thread = threading.Thread(target=run_worker, args=arguments, daemon=True)
        self.thread.start()

    def until(self, kind: type) -> list[Event]:
        """Events up to the first of a kind."""
        seen = [self.events.get(timeout=60)]
        while not isinstance(seen[-1], kind):
            seen.append(self.events.get(timeout=60))
        return seen


@pytest.fixture(scope="module")
def worker() -> Iterator[Worker]:
    worker = Worker(tiny_model_path())
    seen = worker.until(Ready)
    assert {type(event) for event in seen[:-1]} == {LoadProgress}
    yield worker
    worker.commands.put(Shutdown())
    worker.thread.join(30)
    assert not worker.thread.is_alive()


def call(call_id: int, rows: int, wants: RowWants | None = None) -> ScoreCall:
    ids = np.arange(rows) % 2048
    return ScoreCall(call_id, (group([1], [completion(ids)]),), wants or RowWants())


def test_a_call(worker: Worker) -> None:
    worker.commands.put(Submit(call(1, 5)))
    assert [type(e) for e in worker.until(CallFinished)] == [CallStarted, ScoreSlice, CallFinished]


def test_it_waits_for_credit_and_takes_commands_meanwhile(worker: Worker) -> None:
    """A reader that takes nothing stops its call, and a later one is answered."""
    hungry = call(2, 600, RowWants(top_k=2048))
    worker.commands.put(Submit(hungry))
    taken = 0
    while taken < INITIAL_CREDIT:
        if isinstance(event := worker.events.get(timeout=60), ScoreSlice):
            taken += event.size
    with pytest.raises(queue.Empty):
        worker.events.get(timeout=0.5)
    worker.commands.put(Submit(call(3, 5)))
    finished = worker.until(CallFinished)[-1]
    assert isinstance(finished, CallFinished)
    assert finished.call_id == 3
    worker.commands.put(Cancel(2))
    worker.commands.put(Submit(call(4, 5)))
    assert {e.call_id for e in worker.until(CallFinished)} == {4}  # type: ignore[union-attr]


class Steps(Monitor):
    """Counts them as they begin."""

    begun = 0

    def begin_step(self) -> None:
        self.begun += 1
        super().begin_step()


def sampling(call_id: int, n: int, max_tokens: int) -> SampleCall:
    prompt = np.array([1], dtype=np.int32)
    return SampleCall(call_id, (SamplingTask(0, prompt, n, 5, 0, Processing(), 0, max_tokens),))


LONG = [pytest.param(call(1, 4000), id="score"), pytest.param(sampling(1, 8, 500), id="sample")]


@pytest.mark.parametrize("long", LONG)
def test_nothing_of_a_cancelled_call_is_in_the_steps_that_follow(long: Call) -> None:
    commands: queue.SimpleQueue[Command] = queue.SimpleQueue()
    steps = Steps()
    cancelled: list[int] = []
    answered: list[int] = []

    def send(event: Event) -> None:
        if isinstance(event, Ready):
            commands.put(Submit(long))
        elif isinstance(event, ScoreSlice | SampleSlice) and event.call_id == 1:
            answered.append(steps.begun)
            if steps.begun >= 3 and not cancelled:
                cancelled.append(steps.begun)
                commands.put(Cancel(1))
                commands.put(Submit(sampling(2, 1, 100)))
        elif isinstance(event, CallFinished):
            commands.put(Shutdown())

    run_worker(EngineConfig(model=str(tiny_model_path()), device="cpu"), commands, send, steps)
    assert answered[-1] == cancelled[0] < 100, "of 500 steps, if it draws"
    assert steps.begun - cancelled[0] == 100, "of the other call: a token each"


def test_a_model_that_cannot_be_loaded(tmp_path: Path) -> None:
    worker = Worker(tmp_path / "nowhere")
    failed = worker.until(LoadFailed)[-1]
    assert isinstance(failed, LoadFailed)
    assert "no folder" in failed.message
    worker.thread.join(30)
    assert not worker.thread.is_alive()
