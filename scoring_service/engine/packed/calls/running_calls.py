"""The calls under way, and how each of them and of their items ends."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

from scoring_service.engine.attention.store import SegmentStore
from scoring_service.engine.events import CallEvent, CallFailed, CallFinished, ItemFailed
from scoring_service.engine.packed.calls.call_run import CallRun
from scoring_service.engine.packed.calls.reservation import Room
from scoring_service.engine.packed.calls.sample_run import SampleRun
from scoring_service.engine.packed.calls.sample_slots import SampleSlots
from scoring_service.engine.packed.calls.score_run import CompletionRun
from scoring_service.errors import Fault, deadline_passed


class RunningCalls:
    """Calls by their ids. What ends gives back its pages, and the room that was promised to it."""

    def __init__(self, store: SegmentStore, room: Room, slots: SampleSlots) -> None:
        self.by_id: dict[int, CallRun] = {}
        self._store = store
        self._room = room
        self._slots = slots
        self._reached: dict[int, float] = {}
        """Priority -> tokens that a call would have been served that was there all the time and
        got its share of each step."""

    def sharing(self) -> Counter[int]:
        """How many calls there are of each priority; what others reached is forgotten."""
        found = Counter(run.call.priority for run in self.by_id.values())
        self._reached = {p: reached for p, reached in self._reached.items() if p in found}
        return found

    def serve(self, run: CallRun, tokens: int, sharing: Counter[int]) -> None:
        """It is the turn of this call.

        Args:
            run: of the call.
            tokens: that it gets.
            sharing: see there; counted once a step.
        """
        priority = run.call.priority
        reached = max(run.served, self._reached.get(priority, 0.0))
        self._reached[priority] = reached + tokens / sharing[priority]
        run.served += tokens

    def newcomers_share(self, priority: int) -> float:
        """What a newcomer counts as served: as much as one that was there all the time.

        Not as little as the least: a sample takes a token a step however little it was served, and
        all who come while it is drawn would go before those that compute since long.
        """
        others = [run.served for run in self.by_id.values() if run.call.priority == priority]
        return max(min(others, default=0.0), self._reached.get(priority, 0.0))

    def cancel(self, call_id: int) -> bool:
        """Forgets a call and frees what it holds; whether there was one."""
        run = self.by_id.pop(call_id, None)
        if run is None:
            return False
        run.to_come.close()
        run.units.clear()
        for completion in list(run.completions):
            self.end_completion(run, completion)
        for sample in list(run.samples):
            self.end_sample(run, sample)
        return True

    def fail(
        self, runs: Sequence[CallRun], fault: Fault, shared_step: bool = False
    ) -> list[CallEvent]:
        """Ends whole calls."""
        for run in runs:
            self.cancel(run.call.call_id)
        return [CallFailed(run.call.call_id, fault, shared_step) for run in runs]

    def expire(self, now: float) -> list[CallEvent]:
        """Drops calls whose callers no longer wait, before they cost anything more."""
        late = [run for run in self.by_id.values() if run.call.deadline < now]
        return self.fail(late, deadline_passed())

    def finish(self) -> list[CallEvent]:
        """Takes leave of calls of which everything was answered."""
        events: list[CallEvent] = []
        for call_id, run in list(self.by_id.items()):
            if run.is_finished:
                del self.by_id[call_id]
                started = run.submitted if run.started is None else run.started
                usage = replace(run.usage, queue_seconds=started - run.submitted)
                events.append(CallFinished(call_id, usage))
        return events

    def end_completion(self, run: CallRun, completion: CompletionRun) -> None:
        """Every row of it was answered, or will not be."""
        run.completions.discard(completion)
        if not completion.end.computed:
            # What waits of it would be written where others' keys and values are by then.
            run.drop(lambda unit: unit.completion is completion)
        self._store.release(completion.end)
        if completion.reservation is not None:
            self._room.unuse(completion.reservation)
        self._room.give_back_shared(completion.shared_pages)

    def end_sample(self, run: CallRun, sample: SampleRun) -> None:
        """It drew its last token."""
        run.samples.remove(sample)
        self._room.remove_sample(sample)
        self._store.release(sample.prompt_end)
        self._slots.end(sample.call)

    def fail_completion(self, completion: CompletionRun, fault: Fault) -> CallEvent:
        """Ends one completion; its call goes on."""
        run = self.by_id[completion.call.call_id]
        self.end_completion(run, completion)
        return ItemFailed(run.call.call_id, completion.group.index, completion.task.index, fault)

    def fail_sample(self, sample: SampleRun, fault: Fault) -> CallEvent:
        """Ends one sample; its call goes on."""
        run = self.by_id[sample.call.call_id]
        run.drop(lambda unit: unit.sample is sample)
        self.end_sample(run, sample)
        return ItemFailed(run.call.call_id, sample.task.index, sample.index, fault)
