"""What becomes of samples that are being drawn when the weights change."""

from __future__ import annotations

from collections.abc import Iterator

import structlog

from scoring_service.engine.events import Cancel, ItemFailed
from scoring_service.errors import Fault, Reason
from scoring_service.pool.calls.admitted import AdmittedCalls
from scoring_service.pool.streams.stream import Part
from scoring_service.pool.weights.status import RunningSamples
from scoring_service.types import EngineInfo, SampleCall

log = structlog.get_logger(__name__)


def change_samples(
    calls: AdmittedCalls, policy: RunningSamples, info: EngineInfo, reason: str
) -> None:
    """Does with the samples that are being drawn what an update says.

    Those of calls that take none of the new weights end on the old ones, whatever it says.

    Args:
        calls: all that were admitted.
        policy: of the update.
        info: the model as the new weights make it.
        reason: when it is done, for the log.
    """
    if policy is RunningSamples.FINISH:
        return
    # All of them first: what ends makes room, and what begins there has the new weights.
    running = [(worker, part) for worker in calls.workers for part in worker.parts.values()]
    count = _change_waiting(calls, policy, info)
    for worker, part in running:
        if not _is_changed(part, info):
            continue
        count += 1
        worker.drop(part)
        worker.send(Cancel(part.part_id))
        part.stream.running.pop(part.part_id, None)
        if policy is RunningSamples.CONTINUE:
            calls.retry(part, anew=True)
        else:
            _fail_samples(part)
            calls.ends.finish_if_done(part.stream)
        calls.parts.free(part)
    if count:
        calls.admission.throughput.dropped()
    log.info("samples_changed", policy=str(policy), when=reason, parts=count)
    calls.dispatcher.dispatch()


def _change_waiting(calls: AdmittedCalls, policy: RunningSamples, info: EngineInfo) -> int:
    """Parts whose worker died were begun too, though none goes on with them yet; how many."""
    waiting = [part for stream in calls.streams.values() for part in stream.waiting]
    begun = [part for part in waiting if part.weights is not None and _is_changed(part, info)]
    if policy is RunningSamples.ABORT:
        # All of them leave the queue before any call ends, and none ends before all its samples.
        for part in begun:
            part.stream.waiting.remove(part)
            _fail_samples(part)
        for part in begun:
            if not part.stream.ended:
                calls.ends.finish_if_done(part.stream)
    for part in begun:
        calls.parts.free(part)  # one that goes on is begun again with whatever weights are running
    return len(begun)


def _is_changed(part: Part, info: EngineInfo) -> bool:
    """Whether it draws samples of a call that takes the new weights."""
    stream = part.stream
    draws = isinstance(part.call, SampleCall)
    return draws and not stream.ended and not stream.insists_against(info)


def _fail_samples(part: Part) -> None:
    stream = part.stream
    for event in _unfinished(part):
        stream.push(event)
    stream.usage += part.delivered.usage


def _unfinished(part: Part) -> Iterator[ItemFailed]:
    """The ends of a part's samples that are not over, as an update that aborts them has it."""
    if not isinstance(part.call, SampleCall):
        return
    message = "the weights were replaced, and running samples aborted"
    fault = Fault(Reason.WEIGHTS_REPLACED, message)
    for task in part.call.prompts:
        if task.index in part.delivered.failed:
            continue
        for index in task.sample_indices:
            if (task.index, index) not in part.delivered.ended:
                yield ItemFailed(part.stream.call.call_id, task.index, index, fault)
