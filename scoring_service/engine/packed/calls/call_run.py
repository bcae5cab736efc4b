"""A call on its way through steps."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, field, replace

from scoring_service.engine.attention.segments import Segment
from scoring_service.engine.packed.calls.reservation import Need
from scoring_service.engine.packed.calls.sample_run import SampleRun
from scoring_service.engine.packed.calls.score_run import CompletionRun, tokens_to_compute
from scoring_service.engine.runner import INITIAL_CREDIT
from scoring_service.engine.weights.model_weights import ModelWeights
from scoring_service.types import Call, SampleCall, ScoreCall, Usage


@dataclass(eq=False, slots=True)
class Unit:
    """Something that joins a step as a whole: a segment, rows of a completion, a sample's start."""

    segment: Segment | None
    completion: CompletionRun | None = None
    sample: SampleRun | None = None

    @property
    def tokens(self) -> int:
        """What it takes of a step's budget: its tokens, at least one for the rows."""
        if self.segment is None or self.segment.computed:
            return 1
        return len(self.segment.token_ids) - self.segment.done

    @property
    def position(self) -> int:
        """Of the first token that it takes in its sequence."""
        return self.segment.start + self.segment.done if self.segment else 0

    @property
    def reply_bytes(self) -> int:
        """What its rows take of the reply, at most."""
        if self.completion is None:
            return 0
        # The first token also brings the row that comes from the prompt's end.
        end = self.completion.prompt_end.stop
        segment = self.segment
        first = segment is not None and segment.start == end and segment.done == 0
        return (self.tokens + first) * self.completion.row_bytes

    @property
    def left(self) -> int:
        """What it counts of `CallRun.left`: all of a segment that others computed."""
        return (
            len(self.segment.token_ids) if self.segment and self.segment.computed else self.tokens
        )


def tokens_of(call: Call, chunk_size: int) -> int:
    """What all units of a call may have to compute: at least one each, drawn tokens apart."""
    if isinstance(call, ScoreCall):
        found = 0
        for group in call.groups:
            prompt = len(group.prompt_ids)
            found += prompt + sum(
                max(1, tokens_to_compute(task, call.next_token, prompt, chunk_size))
                for task in group.completions
            )
        return found
    return sum(len(task.prompt_ids) + task.n for task in call.prompts)


def items_of(call: Call) -> int:
    """Completions or samples of a call."""
    if isinstance(call, ScoreCall):
        return sum(len(group.completions) for group in call.groups)
    return sum(task.n for task in call.prompts)


@dataclass(eq=False, slots=True)
class CallRun:
    """What is under way and what is to come of a call."""

    call: Call
    to_come: Generator[list[Unit] | None, None, None]
    """Units, item by item; None while there is no room for the next item."""
    served: float
    """As of `scheduler.Offer`."""
    left: int
    """As of `scheduler.Offer`."""
    items_to_come: int
    """Completions or samples that did not begin."""
    weights: ModelWeights | None = None
    """What it is computed with; None = whatever the model has."""
    alone: bool = False
    """No other call joins its steps."""
    submitted: float = field(default_factory=time.monotonic)
    waiting_since: float = field(default_factory=time.monotonic)
    """When those it shares steps with had their last one, or it was submitted."""
    started: float | None = None
    waits_for: Need | None = None
    """What there is no room for, while nothing of it is under way."""
    credit: int = INITIAL_CREDIT
    usage: Usage = field(default_factory=Usage)
    units: deque[Unit] = field(default_factory=deque)
    exhausted: bool = False
    """Whether `to_come` has ended."""
    completions: set[CompletionRun] = field(default_factory=set)
    """Begun and not answered yet."""
    samples: list[SampleRun] = field(default_factory=list)
    """Begun and not ended yet, oldest first."""

    @property
    def whole(self) -> int:
        """Id of the call that this is, or is a part of."""
        part_of = self.call.part_of if isinstance(self.call, SampleCall) else None
        return self.call.call_id if part_of is None else part_of

    @property
    def open_units(self) -> int:
        """Tokens of the units that wait."""
        return sum(unit.tokens for unit in self.units)

    def fill(self, tokens: int) -> None:
        """Makes units wait that hold at least so many tokens, if there is room for them.

        Behind the last item nothing comes but the end, which gives back what its prompt held.
        """
        waiting = self.open_units
        while not self.exhausted and (waiting < tokens or not self.items_to_come):
            more = next(self.to_come, ())
            if more is None:
                return
            if more == ():
                self.exhausted = True
                return
            self._begin(more)
            waiting += sum(unit.tokens for unit in more)

    def _begin(self, more: Sequence[Unit]) -> None:
        """Notes what units belong to before the next ones are made, which may fail."""
        self.units.extend(more)
        for unit in more:
            if unit.sample is not None:
                self.samples.append(unit.sample)
                self.items_to_come -= 1
            if unit.completion is not None and unit.completion not in self.completions:
                self.completions.add(unit.completion)
                self.items_to_come -= 1
                count = self.usage.completion_tokens + len(unit.completion.task.token_ids)
                self.usage = replace(self.usage, completion_tokens=count)

    def drop(self, belongs: Callable[[Unit], bool]) -> None:
        """Forgets waiting units."""
        kept: deque[Unit] = deque()
        for unit in self.units:
            if belongs(unit):
                self.left -= unit.left
            else:
                kept.append(unit)
        self.units = kept

    @property
    def is_waiting(self) -> bool:
        """Whether nothing of it is under way, though there is more to come."""
        return not (self.exhausted or self.units or self.completions or self.samples)

    @property
    def is_finished(self) -> bool:
        """Whether everything was answered."""
        return self.exhausted and not self.units and not self.completions and not self.samples
