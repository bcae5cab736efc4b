"""What evaluations ask: many contexts with continuations, many prompts to continue."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Unpack

from scoring_client.batches import batches
from scoring_client.client import ScoringClient
from scoring_client.inputs import PromptGroup, SamplePrompt
from scoring_client.options import SampleOptions, ScoreOptions
from scoring_client.results import CompletionScores
from scoring_client.samples import Sample

Pair = tuple[Sequence[int], Sequence[int]]
"""Token ids of context and continuation, both at least one."""


def score_pairs(
    client: ScoringClient,
    pairs: Iterable[Pair],
    *,
    max_length: int | None = None,
    **options: Unpack[ScoreOptions],
) -> list[CompletionScores]:
    """Return the scores of each continuation, in order, in as many calls as suit the server.

    Equal contexts become one group, wherever their pairs stand: each is computed once.

    Args:
        client: Of the server.
        pairs: Contexts and continuations.
        max_length: Longer pairs lose tokens from the left, from the continuation too where it is
            longer by itself; one token of context stays.
        options: Of ``client.score``.

    Raises:
        ValueError: max_length < 2.
        ScoringError: see ``scoring_client.errors``.
    """
    if max_length is not None and max_length < 2:
        raise ValueError(
            f"max_length must be at least 2, a token to see and one to score: {max_length}"
        )
    by_context: dict[tuple[int, ...], list[tuple[int, Sequence[int]]]] = {}
    count = 0
    for count, pair in enumerate(pairs, start=1):
        context, continuation = _fitting(pair, max_length)
        by_context.setdefault(tuple(context), []).append((count - 1, continuation))
    groups = [
        (
            PromptGroup(list(context), [list(ids) for _, ids in asked]),
            [place for place, _ in asked],
            len(context) + sum(len(ids) for _, ids in asked),
        )
        for context, asked in by_context.items()
    ]
    found: dict[int, CompletionScores] = {}
    room = client.model_info().limits.preferred_tokens_per_call
    for part in batches((((group, places), size) for group, places, size in groups), room):
        answers = client.score([group for group, _ in part], **options)
        for (_, places), scores in zip(part, answers, strict=True):
            found.update(zip(places, scores, strict=True))
    return [found[place] for place in range(count)]


def sample_prompts(
    client: ScoringClient, prompts: Iterable[SamplePrompt], **options: Unpack[SampleOptions]
) -> list[tuple[Sample, ...]]:
    """Return the samples of each prompt, in order, in as many calls as suit the server.

    Args:
        client: Of the server.
        prompts: What to continue, each with its settings.
        options: Of ``client.sample``.

    Raises:
        ScoringError: see ``scoring_client.errors``.
    """
    room = client.model_info().limits.preferred_tokens_per_call
    sized = ((prompt, len(prompt.prompt) + (prompt.max_tokens or 0)) for prompt in prompts)
    return [samples for part in batches(sized, room) for samples in client.sample(part, **options)]


def _fitting(pair: Pair, max_length: int | None) -> Pair:
    context, continuation = pair
    if max_length is None or len(context) + len(continuation) <= max_length:
        return pair
    kept = [*context, *continuation][-max_length:]
    split = max(max_length - len(continuation), 1)
    return kept[:split], kept[split:]
