"""Large calls in parts: so that workers share them, and nobody waits behind a whole one."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from scoring_service.types import (
    Call,
    CompletionTask,
    GroupTask,
    SampleCall,
    SamplingTask,
    ScoreCall,
)

MAX_SAMPLES_PER_PART = 32
"""Samples of a part."""


@dataclass(frozen=True, slots=True)
class Size:
    """What a call costs."""

    load: int
    """Tokens that steps have to make room for at once: prompts, completions, one of each sample."""
    samples: int
    reply_bytes: int
    """Bytes of its results, at most."""
    tokens: int
    """As the queue counts them: prompts once for each completion, samples at their longest."""


def split(call: Call, most_tokens: int) -> list[Call]:
    """Cuts a call into parts of about so many tokens, in order; none is empty.

    A completion or a sample is never cut, and what belongs to one prompt stays together while it
    fits. No number depends on the cut (docs/concepts.md, "Segments, seams, same bits").
    """
    if isinstance(call, ScoreCall):
        groups = _bundled(
            (piece for group in call.groups for piece in _group_pieces(group, most_tokens)),
            most_tokens,
        )
        return [replace(call, groups=tuple(bundle)) for bundle in groups]
    prompts = _sample_bundles(call, most_tokens)
    return [replace(call, prompts=tuple(bundle)) for bundle in prompts]


def size_of(call: Call) -> Size:
    """Predicts what a call takes."""
    if isinstance(call, ScoreCall):
        reply = load = 0
        for group in call.groups:
            load += _group_tokens(group)
            for completion in group.completions:
                rows = sum(length for _, length in completion.spans) + call.next_token
                reply += rows * call.wants.row_bytes(completion.candidates)
        return Size(load, 0, reply, call.tokens)
    samples = sum(task.n for task in call.prompts)
    tokens = sum(task.n * task.max_tokens for task in call.prompts)
    load = sum(len(task.prompt_ids) + task.n for task in call.prompts)
    reply = tokens * call.token_bytes
    return Size(load, samples, reply, call.tokens)


def _group_tokens(group: GroupTask) -> int:
    return len(group.prompt_ids) + sum(len(c.token_ids) for c in group.completions)


def _group_pieces(group: GroupTask, most_tokens: int) -> Iterator[GroupTask]:
    """The group, or pieces of it where its completions alone would fill more than one part."""
    taken: list[CompletionTask] = []
    tokens = 0
    for completion in group.completions:
        if taken and tokens + len(completion.token_ids) > most_tokens:
            yield replace(group, completions=tuple(taken))
            taken, tokens = [], 0
        taken.append(completion)
        tokens += len(completion.token_ids)
    if taken:
        yield replace(group, completions=tuple(taken))


def _bundled(groups: Iterator[GroupTask], most_tokens: int) -> Iterator[list[GroupTask]]:
    bundle: list[GroupTask] = []
    tokens = 0
    for group in groups:
        if bundle and tokens + _group_tokens(group) > most_tokens:
            yield bundle
            bundle, tokens = [], 0
        bundle.append(group)
        tokens += _group_tokens(group)
    if bundle:
        yield bundle


def _sample_bundles(call: SampleCall, most_tokens: int) -> Iterator[list[SamplingTask]]:
    bundle: list[SamplingTask] = []
    tokens = samples = 0
    for task in call.prompts:
        for first in range(0, task.n, MAX_SAMPLES_PER_PART):
            count = min(MAX_SAMPLES_PER_PART, task.n - first)
            piece = replace(task, n=count, first_sample_index=task.first_sample_index + first)
            full = (
                samples + count > MAX_SAMPLES_PER_PART
                or tokens + len(task.prompt_ids) > most_tokens
            )
            if bundle and full:
                yield bundle
                bundle, tokens, samples = [], 0, 0
            bundle.append(piece)
            tokens += len(task.prompt_ids)
            samples += count
    if bundle:
        yield bundle
