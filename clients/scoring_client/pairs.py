"""Contexts with continuations: a context is computed once, wherever its pairs stand."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Unpack

from scoring_client.batches import batches
from scoring_client.client import ScoringClient
from scoring_client.division import NEVER_DIVIDED_BELOW
from scoring_client.errors import InvalidRequestError
from scoring_client.inputs import Completion, PromptGroup
from scoring_client.options import ScoreOptions, TopKOptions
from scoring_client.results import CompletionScores, CompletionTopK, ScoreResults, ScoresT

Pair = tuple[Sequence[int], Sequence[int]]
"""Token ids of context, at least one, and continuation; an empty one has scores of no rows."""

_Asked = tuple[tuple[int, Sequence[int] | Completion], int]
"""A pair's place and completion, and how many tokens that has."""


def score_pairs(
    client: ScoringClient, pairs: Iterable[Pair], **options: Unpack[ScoreOptions]
) -> list[CompletionScores]:
    """Return the scores of each continuation, in order.

    Args:
        client: Of the server.
        pairs: Contexts and continuations, any number of them: the client divides its call.
        options: Of ``client.score``.

    Raises:
        InvalidRequestError: ``next_token`` is asked of an empty continuation. Errors of the call
            count contexts as groups, in the order in which they come first.
        ScoringError: see ``scoring_client.errors``.
    """
    groups, places = _grouped(pairs, next_token=options.get("next_token", False))
    return _in_order(client.score(groups, **options), places) if groups else []


def topk_pairs(
    client: ScoringClient, pairs: Iterable[Pair], k: int, **options: Unpack[TopKOptions]
) -> list[CompletionTopK]:
    """Return the scores of each continuation with the k most likely tokens of every row, in order.

    Args:
        client: Of the server.
        pairs: Contexts and continuations, any number of them: the client divides its call.
        k: Tokens listed for each row.
        options: Of ``client.topk_logprobs``.

    Raises:
        InvalidRequestError: as of ``score_pairs``.
        ScoringError: see ``scoring_client.errors``.
    """
    groups, places = _grouped(pairs, next_token=options.get("next_token", False))
    return _in_order(client.topk_logprobs(groups, k, **options), places) if groups else []


def fitting(pair: Pair, max_length: int) -> Pair:
    """Return a pair without what a model cannot take.

    Args:
        pair: Context and continuation.
        max_length: A longer pair loses tokens from the left, from the continuation too where it is
            longer by itself; one token of context stays.

    Raises:
        ValueError: max_length < 2.
    """
    _check_length(max_length)
    context, continuation = pair
    if len(context) + len(continuation) <= max_length:
        return pair
    kept = [*context, *continuation][-max_length:]
    split = max(max_length - len(continuation), 1)
    return kept[:split], kept[split:]


def windows(text: Sequence[int], start_token_id: int, max_length: int) -> list[Pair]:
    """Return a text as pairs that score each of its tokens once.

    Args:
        text: Token ids.
        start_token_id: What stands before it, such as ``start_token_id`` of ``model_info``.
        max_length: Most tokens of a pair. A longer text is several, which score all but one of
            theirs; what is left for the last one is filled up with context.

    Raises:
        ValueError: max_length < 2.
    """
    _check_length(max_length)
    step = max_length - 1
    pairs: list[Pair] = [([start_token_id], text[:step])] if len(text) else []
    for first in range(step, len(text), step):
        end = min(first + step, len(text))
        pairs.append((text[end - max_length : first], text[first:end]))
    return pairs


def _check_length(max_length: int) -> None:
    if max_length < 2:
        raise ValueError(
            f"max_length must be at least 2, a token to see and one to score: {max_length}"
        )


def _grouped(pairs: Iterable[Pair], *, next_token: bool) -> tuple[list[PromptGroup], list[int]]:
    """Return pairs as groups, and the pair's place of each completion, group by group.

    The client divides calls between groups and never within. So a context with very many
    continuations, such as the one token before every text, stands in several groups: each large
    enough that its context, if it has to be computed again, costs an eighth of it at most.
    """
    by_context: dict[tuple[int, ...], list[_Asked]] = {}
    for place, (context, continuation) in enumerate(pairs):
        if len(continuation):
            asked = (place, continuation), len(continuation)
            by_context.setdefault(tuple(context), []).append(asked)
        elif next_token:
            raise InvalidRequestError(
                f"pairs[{place}]: what follows an empty continuation is what follows its context: "
                "give the context's last token as the continuation"
            )
        else:
            # A message cannot hold an empty completion: no row of the context's end, or of any
            # token where the context is one alone.
            prompt, end = (context[:-1], context[-1:]) if len(context) > 1 else (context, [0])
            by_context.setdefault(tuple(prompt), []).append(((place, Completion(end, rows=())), 1))
    groups, places = [], []
    for context, sized in by_context.items():
        for part in batches(sized, max(NEVER_DIVIDED_BELOW, 8 * len(context))):
            groups.append(PromptGroup(context, [completion for _, completion in part]))
            places += [place for place, _ in part]
    return groups, places


def _in_order(results: ScoreResults[ScoresT], places: list[int]) -> list[ScoresT]:
    by_place = dict(zip(places, results.completions(), strict=True))
    return [by_place[place] for place in range(len(places))]
