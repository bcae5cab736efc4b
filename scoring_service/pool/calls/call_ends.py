"""How calls end: answered, failed, expired, unread. Lives in the event loop."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from scoring_service.engine.events import CallFailed, CallFinished, Cancel
from scoring_service.errors import Fault, Reason, deadline_passed
from scoring_service.pool.admission.admission import Admission
from scoring_service.pool.calls.dispatch import Dispatcher
from scoring_service.pool.calls.part_making import PartMaking
from scoring_service.pool.streams.self_audit import PRIORITY, Watch
from scoring_service.pool.streams.stream import CallStream
from scoring_service.pool.weights.weights import PoolWeights
from scoring_service.pool.workers.worker import Worker
from scoring_service.types import EngineInfo


@dataclass(frozen=True, slots=True)
class CallEnds:
    """Ends calls, and frees what they hold."""

    streams: dict[int, CallStream]
    """Calls that are not over."""
    parts: PartMaking
    admission: Admission
    dispatcher: Dispatcher
    workers: Sequence[Worker]
    weights: PoolWeights
    audit: Callable[[Watch], None]
    """Has a completion of a call that was answered computed a second time."""

    def finish_if_done(self, stream: CallStream) -> None:
        """Ends a call of which no part is left."""
        if stream.waiting or stream.running:
            return
        usage = stream.final_usage()
        self.end(stream)
        if stream.watch is not None:
            self.audit(stream.watch)
        stream.push(CallFinished(stream.call.call_id, usage))

    def fail(self, stream: CallStream, fault: Fault) -> None:
        """Ends a call with a fault."""
        if not stream.ended:
            self.end(stream)
            stream.push(CallFailed(stream.call.call_id, fault))

    def expire(self, stream: CallStream) -> None:
        """Ends a call whose deadline has passed."""
        self.fail(stream, deadline_passed())

    def stalled(self, stream: CallStream, fault: Fault) -> None:
        """Its reader has taken nothing for too long: that is how the call ends, computed or not."""
        self.end(stream)  # first: what is forgotten lets others go on, and might end it once more
        self.forget_unread(stream)
        stream.push(CallFailed(stream.call.call_id, fault))

    def end_audits(self, info: EngineInfo) -> None:
        """Ends audits of other weights than these: while others go first they would keep theirs."""
        for stream in list(self.streams.values()):
            if stream.call.priority == PRIORITY and stream.insists_against(info):
                message = "the weights that the audit is about were replaced"
                self.fail(stream, Fault(Reason.WEIGHT_VERSION_MISMATCH, message))

    def forget_unread(self, stream: CallStream) -> None:
        """Its reader will take none of what waits for it."""
        self.dispatcher.read(stream.client, stream.discard())

    def end(self, stream: CallStream) -> None:
        """Frees everything that a call holds but the events that its reader has yet to take."""
        if stream.ended:
            return
        stream.ended = True
        self.dispatcher.remove(stream)
        for part in stream.waiting:
            self.parts.free(part)
        stream.waiting.clear()
        if stream.pinned is not None:
            self.weights.weight_sets.release(stream.pinned)
            stream.pinned = None
        if stream.running:
            self.admission.throughput.dropped()
        for part_id in list(stream.running):
            part = stream.running.pop(part_id)
            stream.usage += part.delivered.usage
            if part.worker is not None:
                worker = self.workers[part.worker]
                worker.drop(part)
                worker.send(Cancel(part_id))
            # Only then: weights that nothing else needs are dropped, and others written over them.
            self.parts.free(part)
        self.streams.pop(stream.call.call_id, None)
        self.admission.release(stream.call.call_id)
        self.dispatcher.dispatch()
