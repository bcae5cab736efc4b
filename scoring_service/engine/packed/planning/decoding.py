"""The next tokens of samples, and which of them are preempted when pages run out."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from scoring_service.engine.attention.segments import DecodeToken
from scoring_service.engine.packed.calls.call_run import CallRun
from scoring_service.engine.packed.calls.reservation import Room
from scoring_service.engine.packed.calls.sample_run import SampleRun
from scoring_service.engine.packed.calls.sample_slots import sample_places

OnSampleBug = Callable[[CallRun, Exception], None]
"""Ends a call whose samples cannot go on."""


class StepSamples:
    """Samples that go on in one step, one priority after another, in the order of `sample_places`.

    Each of a priority takes its next token before one takes more: who resumes, after it was
    preempted or its worker died, has all that was drawn of it to run through the model again.
    """

    def __init__(
        self,
        ready: Sequence[CallRun],
        running: Iterable[CallRun],
        room: Room,
        most: int,
        on_bug: OnSampleBug,
    ) -> None:
        """Begins with an empty step.

        Args:
            ready: calls whose samples may go on.
            running: all calls, whose samples further behind are preempted where pages run out.
            room: the pages.
            most: samples that a step draws.
            on_bug: see there.
        """
        self.decode_tokens: list[tuple[CallRun, SampleRun, DecodeToken]] = []
        """That the step runs through the model, those of one sample in their order."""
        self._room = room
        self._left = most
        self._on_bug = on_bug
        self._places = places = sample_places(running)
        waiting = [
            (run, sample)
            for run in ready
            for sample in run.samples
            if sample.begun and sample.token_ids
        ]
        self._waiting: dict[int, list[tuple[CallRun, SampleRun]]] = {}
        """By priority, those that were not asked yet."""
        for run, sample in sorted(waiting, key=lambda pair: places[pair[1]]):
            self._waiting.setdefault(run.call.priority, []).append((run, sample))
        self._holders = sorted((s for s in places if s.pages), key=places.__getitem__)
        """Samples that have pages, in their order: the last is preempted first."""
        self._going_on: list[tuple[CallRun, SampleRun]] = []
        self._ended: set[int] = set()
        """Calls that met a bug."""

    @property
    def priorities(self) -> list[int]:
        """Of those that were not asked yet, descending."""
        return list(self._waiting)

    @property
    def to_come(self) -> int:
        """How many of those that were not asked yet a step could draw."""
        return min(self._left, sum(map(len, self._waiting.values())))

    def go_on(self, priority: int, tokens: int) -> int:
        """Each of a priority takes its next token, as long as there are tokens and pages.

        Args:
            priority: the highest that was not asked yet.
            tokens: that the step has for them.

        Returns:
            how many they take.
        """
        left = tokens
        for run, sample in self._waiting.pop(priority):
            if left == 0 or self._left == 0:
                sample.wait()
            elif self._take(run, sample, 1):
                self._going_on.append((run, sample))
                self._left -= 1
                left -= 1
        return tokens - left

    @property
    def callers(self) -> set[int]:
        """`CallRun.whole` of those that go on."""
        return {run.whole for run, _ in self._going_on}

    @property
    def any_draws(self) -> bool:
        """Whether one of those that go on has caught up, and draws in this step."""
        return any(sample.can_draw for _, sample in self._going_on)

    def catch_up(self, tokens: int) -> int:
        """Those that go on and have not caught up take more, the first all that it can.

        Args:
            tokens: that the step has for that.

        Returns:
            how many they take.
        """
        left = tokens
        for run, sample in self._going_on:
            if left and not sample.can_draw:
                left -= self._take(run, sample, left)
        return tokens - left

    def _take(self, run: CallRun, sample: SampleRun, limit: int) -> int:
        """How many tokens a sample takes, at most `limit`; 0 where it cannot go on."""
        if id(run) in self._ended:
            return 0
        try:
            if sample.pages_missing and not self._make_room(sample):
                sample.wait()
                return 0
            new = sample.decode_tokens(limit)
        except Exception as error:  # noqa: BLE001 - a bug ends the call it met, not the worker
            self._on_bug(run, error)
            self.drop(run)
            return 0
        run.served += len(new)
        self.decode_tokens.extend((run, sample, token) for token in new)
        return len(new)

    def drop(self, run: CallRun) -> None:
        """A call ended."""
        self._ended.add(id(run))
        self.decode_tokens = [entry for entry in self.decode_tokens if entry[0] is not run]

    def _make_room(self, sample: SampleRun) -> bool:
        """Takes the pages that a sample misses, from samples behind it if it must."""
        missing = sample.pages_missing
        left = self._room.free_for_samples(sample.call.priority)
        # They keep what they have if it is too few.
        giving = 0
        while missing > left and giving < len(self._holders):
            giving += 1
            other = self._holders[-giving]
            if self._places[other] <= self._places[sample]:
                break
            left += len(other.pages)
        if missing > left:
            return False
        for _ in range(giving):
            self._room.take_back(self._holders.pop())
        self._room.grow(sample, missing)
        return True
