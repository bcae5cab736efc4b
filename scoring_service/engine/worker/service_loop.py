"""A worker's loop: commands in, steps, events out. The same in a process and in a thread."""

from __future__ import annotations

import queue
import warnings
from collections.abc import Callable
from functools import partial
from typing import Protocol

from scoring_service.engine.bugs import bug_message, bug_report
from scoring_service.engine.events import (
    ApplyWeights,
    CacheFlushed,
    CallEvent,
    CallFailed,
    Cancel,
    Command,
    Credit,
    DropWeights,
    Event,
    FillWeights,
    FlushCache,
    LoadFailed,
    LoadProgress,
    Ready,
    StageWeights,
    Submit,
)
from scoring_service.engine.loading.loader import LoadedModel, cache_key, load
from scoring_service.engine.machine.memory import is_lost, is_out_of_memory
from scoring_service.engine.packed.engine import LogBug, PackedEngine
from scoring_service.engine.packed.steps.decode_graphs import DecodeGraphs
from scoring_service.engine.plain.engine import PlainEngine
from scoring_service.engine.runner import INITIAL_CREDIT, Runner
from scoring_service.engine.updates.weight_store import WeightStore
from scoring_service.engine.weights.model_weights import ModelWeights
from scoring_service.engine.worker.monitor import Monitor
from scoring_service.errors import ConfigurationError, Fault, Reason
from scoring_service.types import Call, EngineConfig

Send = Callable[[Event], None]


def run_worker(
    config: EngineConfig,
    commands: queue.SimpleQueue[Command],
    send: Send,
    monitor: Monitor | None = None,
) -> None:
    """Loads the model and answers calls until told to shut down.

    Args:
        config: what to load.
        commands: what to do.
        send: takes events.
        monitor: is told what the loop is doing.
    """
    monitor = monitor or Monitor()
    try:
        loaded = load(config, on_stage=lambda stage: send(LoadProgress(stage)))
    except ConfigurationError as error:
        send(LoadFailed(str(error)))
        return
    store = WeightStore(loaded, send)
    send(Ready(loaded.info))
    log_bug = partial(_tell_bug, send)
    runner = make_runner(loaded, log_bug, lambda error: send(bug_report(error)))
    monitor.watch(runner.gauges)
    while _obey(runner, store, commands, send, log_bug):
        if runner.can_step:
            monitor.begin_step()
            events = runner.step()
            monitor.end_step(events)
            for event in events:
                send(event)
            if not runner.is_sound:
                raise SystemExit(
                    "the worker ran out of memory or lost its GPU: a new one is started"
                )


class CallRunner(Protocol):
    """What a worker drives: calls in, steps, events out."""

    is_sound: bool
    """Whether it can be relied on; if not, its worker ends and is started again."""

    def submit(self, call: Call, weights: ModelWeights | None = None, alone: bool = False) -> None:
        """Adds a call, to be computed with these weights; None = those that were loaded.

        With `alone`, no other one joins its steps.
        """
        ...

    def flush_cache(self) -> int:
        """Forgets prompts that no call holds; how many pages they had."""
        ...

    def cancel(self, call_id: int) -> None:
        """Forgets a call and frees what it holds."""
        ...

    def add_credit(self, call_id: int, size: int) -> None:
        """The call's reader took this many bytes."""
        ...

    @property
    def can_step(self) -> bool:
        """Whether a step would do something."""
        ...

    def step(self) -> list[CallEvent]:
        """Computes something; returns what there is to send."""
        ...

    def gauges(self) -> dict[str, int]:
        """Fields of `WorkerStats` that only an engine knows."""
        ...


def _warn(error: Exception) -> None:
    warnings.warn(f"steps are no longer recorded: {error}", RuntimeWarning, stacklevel=2)


def make_runner(
    loaded: LoadedModel, log_bug: LogBug, tell: Callable[[Exception], None] = _warn
) -> CallRunner:
    """The engine that the model's path calls for.

    Args:
        loaded: the model.
        log_bug: is told what ended a call.
        tell: is told what an engine goes on without.
    """
    model, packed = loaded.model, loaded.packed
    if packed is None:
        lost = partial(is_lost, model.device)
        return Runner(PlainEngine(loaded).work, log_bug, lost, is_out_of_memory)
    rows = packed.settings.graph_rows
    return PackedEngine(
        model,
        packed.pool,
        packed.settings,
        loaded.info.eos_token_ids,
        loaded.codec,
        cache_key(loaded.info.weights_digest, loaded.info.dtype),
        log_bug,
        DecodeGraphs(model, packed.pool, rows, tell) if rows else None,
    )


def _obey(
    runner: CallRunner,
    store: WeightStore,
    commands: queue.SimpleQueue[Command],
    send: Send,
    log_bug: LogBug,
) -> bool:
    """Carries out every waiting command, and waits for one when there is no work."""
    while True:
        try:
            command = commands.get(block=not runner.can_step)
        except queue.Empty:
            return True
        if not obey(runner, store, command, send, log_bug):
            return False


def obey(
    runner: CallRunner, store: WeightStore, command: Command, send: Send, log_bug: LogBug
) -> bool:
    """Carries out a command; whether there is anything to do after it.

    Args:
        runner: computes calls.
        store: has the weights.
        command: of the server.
        send: takes events.
        log_bug: is told what ended a call.
    """
    match command:
        case Submit():
            _submit(runner, store, command, send, log_bug)
        case Cancel(call_id):
            runner.cancel(call_id)
        case Credit(call_id, size):
            runner.add_credit(call_id, size)
        case StageWeights():
            store.stage(command)
        case ApplyWeights():
            store.apply(command)
        case FillWeights():
            store.fill(command)
        case DropWeights(weights):
            store.drop(weights)
        case FlushCache():
            send(CacheFlushed(runner.flush_cache()))
        case _:
            return False
    return True


def _submit(
    runner: CallRunner, store: WeightStore, command: Submit, send: Send, log_bug: LogBug
) -> None:
    call_id = command.call.call_id
    try:
        runner.submit(command.call, store.find(command.weights), command.alone)
    except Exception as error:  # noqa: BLE001 - a bug ends the call it met, not the worker
        log_bug(command.call, error)
        runner.cancel(call_id)
        fault = Fault(Reason.INTERNAL_ERROR, bug_message(error))
        send(CallFailed(call_id, fault))
        return
    if command.credit is not None:
        runner.add_credit(call_id, command.credit - INITIAL_CREDIT)


def _tell_bug(send: Send, call: Call, error: BaseException) -> None:
    send(bug_report(error, call.request_id))
