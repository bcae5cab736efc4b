"""Builds Score calls, runs them, and puts the slices of each completion together again."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from scoring_service.engine.events import CallFinished, ItemFailed, ScoreSlice
from scoring_service.engine.loading.loader import LoadedModel
from scoring_service.types import (
    CompletionTask,
    GroupTask,
    Processing,
    RowWants,
    ScoreCall,
    Usage,
)
from tests.engine.driving import drive

EVERYTHING = RowWants.everything(top_k=20)

NUMBERS = (
    "logprobs",
    "processed_logprobs",
    "log_kept_masses",
    "entropies",
    "ranks",
    "logsumexps",
    "support_sizes",
    "candidate_logprobs",
    "top_token_ids",
    "top_logprobs",
    "log_tail_masses",
)
"""Arrays of a row block."""

Spans = tuple[tuple[int, int], ...]
Group = tuple[list[int], list[list[int]]]
"""A prompt and its completions, as ids."""


def completion(
    ids: Sequence[int],
    spans: Spans | None = None,
    candidates: np.ndarray | None = None,
    index: int = 0,
) -> CompletionTask:
    spans = ((0, len(ids)),) if spans is None else spans
    return CompletionTask(index, np.array(ids, dtype=np.int32), spans, candidates)


def group(
    prompt: Sequence[int],
    completions: Sequence[CompletionTask],
    processing: Processing | None = None,
    index: int = 0,
) -> GroupTask:
    ids = np.array(prompt, dtype=np.int32)
    return GroupTask(index, ids, tuple(completions), processing or Processing(), index)


def groups(pairs: Sequence[Group], processing: Processing | None = None) -> list[GroupTask]:
    """Groups whose completions are scored whole."""
    return [
        group(prompt, [completion(c, index=i) for i, c in enumerate(parts)], processing, index)
        for index, (prompt, parts) in enumerate(pairs)
    ]


@dataclass(frozen=True)
class Scored:
    """One completion's answer."""

    slices: list[ScoreSlice]

    @property
    def row_indices(self) -> list[int]:
        return [s.start + n for s in self.slices for n in range(s.block.rows)]

    def __getattr__(self, name: str) -> np.ndarray:
        """An array of all slices, such as `logprobs`."""
        return np.concatenate([getattr(s.block, name) for s in self.slices])

    def has(self, name: str) -> bool:
        return getattr(self.slices[0].block, name) is not None


@dataclass(frozen=True)
class Answer:
    """A call's answer, by (group, completion)."""

    items: dict[tuple[int, int], Scored]
    failures: list[ItemFailed]
    usage: list[Usage]

    def __getitem__(self, key: tuple[int, int]) -> Scored:
        return self.items[key]


def score(
    loaded: LoadedModel,
    tasks: Sequence[GroupTask],
    wants: RowWants | None = None,
    next_token: bool = False,
    slice_bytes: int = 1 << 20,
) -> Answer:
    """Runs a call alone."""
    call = ScoreCall(1, tuple(tasks), wants or RowWants(), next_token, slice_bytes)
    items: dict[tuple[int, int], Scored] = {}
    failures, usage = [], []
    for event in drive(loaded, call):
        if isinstance(event, ScoreSlice):
            key = event.group_index, event.completion_index
            items.setdefault(key, Scored([])).slices.append(event)
        elif isinstance(event, ItemFailed):
            failures.append(event)
        else:
            assert isinstance(event, CallFinished)
            usage.append(event.usage)
    return Answer(items, failures, usage)


def score_one(
    loaded: LoadedModel,
    prompt: Sequence[int],
    task: CompletionTask,
    wants: RowWants | None = None,
    processing: Processing | None = None,
    next_token: bool = False,
) -> Scored:
    """Scores a single completion."""
    tasks = [group(prompt, [task], processing)]
    return score(loaded, tasks, wants, next_token).items[0, task.index]


def assert_same_bits(left: Scored, right: Scored, rows: Sequence[int] | None = None) -> None:
    """Every array of `left` has the bits of (the given rows of) `right`."""
    for name in NUMBERS:
        assert left.has(name) == right.has(name)
        if not left.has(name):
            continue
        expected = getattr(right, name)
        if rows is not None:
            expected = expected[[row for row in rows if row < len(expected)]]
        found = getattr(left, name)
        assert found.dtype == expected.dtype
        assert found.shape == expected.shape, name
        assert found.tobytes() == np.ascontiguousarray(expected).tobytes(), name
