"""A worker's loop: commands in, steps, events out. The same in a process and in a thread."""

from __future__ import annotations

import queue
import sys
import traceback
from collections.abc import Callable

from scoring_service.engine.events import (
    Cancel,
    Command,
    Credit,
    Event,
    LoadFailed,
    LoadProgress,
    Ready,
    Submit,
)
from scoring_service.engine.loader import load
from scoring_service.engine.plain import PlainEngine
from scoring_service.engine.runner import Runner
from scoring_service.errors import ConfigurationError
from scoring_service.types import EngineConfig

Send = Callable[[Event], None]


def run_worker(config: EngineConfig, commands: queue.SimpleQueue[Command], send: Send) -> None:
    """Loads the model and answers calls until told to shut down."""
    try:
        loaded = load(config, on_stage=lambda stage: send(LoadProgress(stage)))
    except ConfigurationError as error:
        send(LoadFailed(str(error)))
        return
    send(Ready(loaded.info))
    runner = Runner(PlainEngine(loaded).work, _log_bug)
    while _obey(runner, commands):
        if runner.can_step:
            for event in runner.step():
                send(event)


def _obey(runner: Runner, commands: queue.SimpleQueue[Command]) -> bool:
    """Carries out every waiting command, and waits for one when there is no work."""
    while True:
        try:
            command = commands.get(block=not runner.can_step)
        except queue.Empty:
            return True
        match command:
            case Submit(call):
                runner.submit(call)
            case Cancel(call_id):
                runner.cancel(call_id)
            case Credit(call_id, size):
                runner.add_credit(call_id, size)
            case _:
                return False


def _log_bug(call_id: int, error: BaseException) -> None:
    print(f"call {call_id} failed by a bug in the engine:", file=sys.stderr)
    traceback.print_exception(error, file=sys.stderr)
