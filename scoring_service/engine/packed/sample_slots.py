"""How many samples calls may have under way, and in which order they go on."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from scoring_service.engine.packed.call_run import CallRun
from scoring_service.engine.packed.sample_run import SampleRun
from scoring_service.types import SampleCall

SamplePlace = tuple[int, int, int]
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
        self._taken: dict[int, tuple[int, int]] = {}
        """Call id -> its priority, and how many it has under way."""

    def may_begin(self, call: SampleCall) -> bool:
        """Whether another sample of a call may begin; less urgent ones make way for it."""
        rivals = [taken for taken in self._taken.values() if taken[0] >= call.priority]
        if sum(count for _, count in rivals) < self._most:
            return True
        own = self._count(call)
        sharing = len(rivals) + (own == 0)
        return own < max(1, self._most // sharing)

    def begin(self, call: SampleCall) -> None:
        """One more of a call."""
        self._taken[call.call_id] = call.priority, self._count(call) + 1

    def end(self, call: SampleCall) -> None:
        """One less."""
        if (count := self._count(call) - 1) > 0:
            self._taken[call.call_id] = call.priority, count
        else:
            self._taken.pop(call.call_id, None)

    def _count(self, call: SampleCall) -> int:
        return self._taken.get(call.call_id, (0, 0))[1]


def sample_places(running: Iterable[CallRun]) -> Mapping[SampleRun, SamplePlace]:
    """Urgent samples first, then one of each call, then another of each, and the oldest first.

    The last of them waits where a step has no room for all, and is preempted where pages run out.
    The first stays first until it ends, whatever comes, so there is always one that ends.
    """
    return {
        sample: (-run.call.priority, turn, sample.order)
        for run in running
        for turn, sample in enumerate(run.samples)
    }
