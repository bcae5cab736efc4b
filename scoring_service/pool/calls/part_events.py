"""What workers say of parts, and what becomes of those that a dead one had."""

from __future__ import annotations

import time
from collections.abc import Sequence

from scoring_service.engine.events import CallEvent, CallFailed, CallFinished, CallStarted
from scoring_service.errors import Fault
from scoring_service.pool.calls.admitted import AdmittedCalls
from scoring_service.pool.streams.stream import Part
from scoring_service.pool.workers.worker import Worker
from scoring_service.types import Usage


def part_event(calls: AdmittedCalls, worker: Worker, event: CallEvent) -> None:
    """Something of a part to its call."""
    part = worker.parts.get(event.call_id)
    if part is None:
        return
    match event:
        case CallStarted():
            _started(calls, part, event)
        case CallFinished(_, usage):
            _finished(calls, worker, part, usage)
        case CallFailed(_, fault, shared_step):
            if shared_step and not part.alone:
                worker.drop(part)
                part.stream.running.pop(part.part_id, None)
                calls.retry(part, alone=True)
                calls.parts.free(part)
            else:
                calls.ends.fail(part.stream, fault)
            calls.dispatcher.dispatch()
        case _:
            _answered(calls, worker, part, event)


def move_parts(
    calls: AdmittedCalls, parts: Sequence[Part], fault: Fault, *, can_move: bool
) -> None:
    """Has parts of a dead worker computed elsewhere, once.

    Args:
        calls: that they are of.
        parts: in the order in which they were begun.
        fault: ends the calls of the others.
        can_move: whether another worker answers.
    """
    # Backwards, because each goes to the front of its call's parts.
    for part in reversed(parts):
        stream = part.stream
        if stream.ended:
            continue  # and all that was running of it is free
        # One by one: a call is over only when none of its parts is left.
        stream.running.pop(part.part_id, None)
        if part.retried or not can_move:
            stream.usage += part.delivered.usage
            calls.ends.fail(stream, fault)
        else:
            calls.retry(part)
        calls.parts.free(part)


def _started(calls: AdmittedCalls, part: Part, event: CallStarted) -> None:
    stream = part.stream
    if stream.queue_seconds is None:
        stream.queue_seconds = time.monotonic() - stream.began
        stream.push(event)


def _finished(calls: AdmittedCalls, worker: Worker, part: Part, usage: Usage) -> None:
    stream = part.stream
    worker.drop(part)
    stream.running.pop(part.part_id, None)
    calls.parts.free(part)
    stream.usage += usage
    calls.admission.finished(stream.call.call_id, part.tokens, part.sent)
    calls.ends.finish_if_done(stream)
    calls.dispatcher.dispatch()


def _answered(calls: AdmittedCalls, worker: Worker, part: Part, event: CallEvent) -> None:
    stream = part.stream
    part.delivered.note(event)
    if stream.watch is not None:
        stream.watch.note(event, worker.index, calls.parts.digest_of(part))
    calls.parts.tell_weights(part)
    before = stream.unread
    stream.push(event, part)
    calls.dispatcher.answered(stream.client, stream.unread - before)
    if part.is_held_back:
        worker.work.weigh(part)
        calls.dispatcher.dispatch()
