"""What was answered of a call before its worker died, and what is left to compute."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace

import numpy as np

from scoring_service.engine.events import CallEvent, ItemFailed, SampleSlice, ScoreSlice
from scoring_service.types import (
    Call,
    CompletionTask,
    GroupTask,
    Int32Array,
    SampleCall,
    SamplingTask,
    ScoreCall,
    Usage,
)

Key = tuple[int, int]
"""(group, completion) or (prompt, sample index)."""


@dataclass(slots=True)
class Delivered:
    """Answers of one part that have been passed on."""

    rows: dict[Key, int] = field(default_factory=dict)
    """Rows of completions, ascending, so a count says which."""
    tokens: dict[Key, list[Int32Array]] = field(default_factory=dict)
    """Tokens of samples."""
    ended: set[Key] = field(default_factory=set)
    """Items answered in full, or failed."""
    failed: set[int] = field(default_factory=set)
    """Groups or prompts that failed as a whole."""

    def note(self, event: CallEvent) -> None:
        """Takes account of an event."""
        if isinstance(event, ScoreSlice):
            key = event.group_index, event.completion_index
            self.rows[key] = self.rows.get(key, 0) + event.block.rows
        elif isinstance(event, SampleSlice):
            key = event.prompt_index, event.sample_index
            self.tokens.setdefault(key, []).append(event.token_ids)
        elif isinstance(event, ItemFailed):
            if event.part is None:
                self.failed.add(event.index)
            else:
                self.ended.add((event.index, event.part))
            return
        else:
            return
        if event.last:
            self.ended.add(key)

    @property
    def usage(self) -> Usage:
        """Rows and samples that were answered and are not computed again.

        What the dead worker computed beside them is lost to the accounts.
        """
        sampled = sum(len(ids) for pieces in self.tokens.values() for ids in pieces)
        return Usage(sampled_tokens=sampled, head_rows=sum(self.rows.values()) + sampled)

    def remainder(self, call: Call) -> Call | None:
        """What is left of a call; None = nothing.

        Scored rows that were sent are left out. Samples go on where they were: their tokens come
        along, to be run through the model but neither drawn nor sent again.
        """
        if isinstance(call, ScoreCall):
            groups = tuple(self._groups(call))
            return replace(call, groups=groups) if groups else None
        prompts = tuple(self._prompts(call))
        return replace(call, prompts=prompts) if prompts else None

    def _groups(self, call: ScoreCall) -> Iterator[GroupTask]:
        for group in call.groups:
            if group.index in self.failed:
                continue
            left = tuple(
                _rows_from(completion, self.rows.get((group.index, completion.index), 0))
                for completion in group.completions
                if (group.index, completion.index) not in self.ended
            )
            if left:
                yield replace(group, completions=left)

    def _prompts(self, call: SampleCall) -> Iterator[SamplingTask]:
        for task in call.prompts:
            if task.index in self.failed:
                continue
            left = [i for i in task.sample_indices if (task.index, i) not in self.ended]
            for first, count in _runs(left):
                drawn = dict(task.drawn)
                for index in range(first, first + count):
                    if (task.index, index) in self.tokens:
                        before = [drawn[index]] if index in drawn else []
                        ids = [*before, *self.tokens[task.index, index]]
                        drawn[index] = np.concatenate(ids)
                of_run = tuple(i for i in drawn.items() if first <= i[0] < first + count)
                yield replace(task, n=count, first_sample_index=first, drawn=of_run)


def _rows_from(completion: CompletionTask, answered: int) -> CompletionTask:
    """The completion without its first wanted rows, a next_token row not among them."""
    spans = []
    left = answered
    for start, length in completion.spans:
        skipped = min(left, length)
        left -= skipped
        if skipped < length:
            spans.append((start + skipped, length - skipped))
    candidates = completion.candidate_ids
    if candidates is not None and candidates.shape[0] > 1:
        candidates = candidates[answered:]
    return replace(completion, spans=tuple(spans), candidate_ids=candidates)


def _runs(indices: list[int]) -> Iterator[tuple[int, int]]:
    """Ascending indices as (first, count)."""
    start = 0
    for place in range(1, len(indices) + 1):
        if place == len(indices) or indices[place] != indices[place - 1] + 1:
            yield indices[start], place - start
            start = place
