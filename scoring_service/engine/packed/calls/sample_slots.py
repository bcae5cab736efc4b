"""How many samples calls may have under way, and in which order they go on."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping

from scoring_service.engine.packed.calls.call_run import CallRun
from scoring_service.engine.packed.calls.sample_run import SampleRun
from scoring_service.types import SampleCall

SamplePlace = tuple[bool, int, int, int]
"""Of a sample among all that are under way, ascending in the order in which they go on."""


class SampleSlots:
    """Lets a call begin samples as long as there are few, and its share where there are many.

    A share may go beyond what a step draws: whoever came before has more than theirs then, and
    their last samples wait.
    """

    def __init__(self, most: int) -> None:
        """Begins with none.

        Args:
            most: samples that a step draws.
        """
        self._most = most
        self._by_call: dict[int, Counter[int]] = {}
        """Priority -> how many samples each of its calls has under way, by their ids."""
        self._together: Counter[int] = Counter()
        """Priority -> how many all of its calls have."""

    def may_begin(self, call: SampleCall) -> bool:
        """Whether another sample of a call may begin; less urgent ones make way for it."""
        rivals = [priority for priority in self._by_call if priority >= call.priority]
        if sum(self._together[priority] for priority in rivals) < self._most:
            return True
        own = self._by_call.get(call.priority, Counter())[call.call_id]
        sharing = sum(len(self._by_call[priority]) for priority in rivals) + (own == 0)
        return own < max(1, self._most // sharing)

    def begin(self, call: SampleCall) -> None:
        """One more of a call."""
        self._by_call.setdefault(call.priority, Counter())[call.call_id] += 1
        self._together[call.priority] += 1

    def end(self, call: SampleCall) -> None:
        """One less."""
        of_priority = self._by_call[call.priority]
        of_priority[call.call_id] -= 1
        self._together[call.priority] -= 1
        if not of_priority[call.call_id]:
            del of_priority[call.call_id]
        if not of_priority:
            del self._by_call[call.priority]


def sample_places(running: Iterable[CallRun]) -> Mapping[SampleRun, SamplePlace]:
    """Urgent samples first, then one of each call, then another of each, and the oldest first.

    The last of them waits where a step has no room for all, and is preempted where pages run out.
    The first stays first until it ends, whatever comes, so there is always one that ends. Those
    whose reader takes nothing come behind all others, who would wait for their pages with them.
    """
    return {
        sample: (run.credit <= 0, -run.call.priority, turn, sample.order)
        for run in running
        for turn, sample in enumerate(run.samples)
    }
