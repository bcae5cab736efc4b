"""Contexts with continuations: a context is computed once, wherever its pairs stand."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from reprlib import repr as short_repr
from typing import Any, Unpack

from scoring_client.calls.batches import batches
from scoring_client.calls.division import NEVER_DIVIDED_BELOW
from scoring_client.calls.resend import in_callers_indices
from scoring_client.client import ScoringClient
from scoring_client.errors import ItemError, ScoringError, invalid
from scoring_client.values.inputs import Completion, PromptGroup
from scoring_client.values.options import ScoreOptions, TopKOptions
from scoring_client.values.results import CompletionScores, CompletionTopK, ScoreResults, ScoresT
from scoring_client.values.tokens import as_text_or_ids

Pair = tuple[Sequence[int], Sequence[int]]
"""Token ids of context, at least one, and continuation; an empty one has scores of no rows."""

_Asked = tuple[tuple[int, Sequence[int] | Completion], int]
"""A pair's place and completion, and how many tokens that has."""

_PATH = re.compile(r"\bgroups\[(\d+)\](\.prompt|\.completions\[(\d+)\](\.token_ids\[0\])?)?")


def score_pairs(
    client: ScoringClient, pairs: Iterable[Pair], **options: Unpack[ScoreOptions]
) -> list[CompletionScores]:
    """Return the scores of each continuation, in order: pair i has ``group_index`` i.

    Args:
        client: Of the server.
        pairs: Contexts and continuations, any number of them: the client divides its call.
        options: Of ``client.score``.

    Raises:
        InvalidRequestError: a pair is none, or ``next_token`` is asked of an empty continuation.
        ScoringError: see ``scoring_client.errors``; paths are as ``pairs[3].continuation``, of a
            context that several pairs share those of the first.
    """
    asked = _grouped(pairs, next_token=options.get("next_token", False))
    return asked.answered(partial(client.score, **options))


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
    asked = _grouped(pairs, next_token=options.get("next_token", False))
    return asked.answered(partial(client.topk_logprobs, k=k, **options))


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


@dataclass(frozen=True, slots=True)
class _Groups:
    """Pairs as groups, and back."""

    groups: list[PromptGroup]
    """Each context once, or a few times."""
    places: list[list[int]]
    """The place of the pair that each completion is of, by group."""
    empty: set[int]
    """Places of pairs without continuation, for which a token of context was sent as one."""

    def answered(self, ask: Callable[[list[PromptGroup]], ScoreResults[ScoresT]]) -> list[ScoresT]:
        """Return what a call says of each pair, in order.

        Raises:
            ScoringError: of the call, in the pairs' indices.
        """
        if not self.groups:
            return []
        try:
            results = ask(self.groups)
        except ScoringError as error:
            raise self._of_pairs(error) from error
        found: dict[int, ScoresT] = {}
        for scores in results.completions():
            place = self.places[scores.group_index][scores.completion_index]
            failed = None if scores.error is None else self._of_pairs(scores.error)
            found[place] = replace(scores, group_index=place, completion_index=0, error=failed)
        return [found[place] for place in range(len(found))]

    def translate(self, text: str) -> str:
        """Return ``text`` with the paths of groups as those of pairs."""

        def path(match: re.Match[str]) -> str:
            group = int(match[1])
            if group >= len(self.places) or int(match[3] or 0) >= len(self.places[group]):
                return match[0]
            place = self.places[group][int(match[3] or 0)]
            if match[2] is None:
                return f"pairs[{place}]"
            if match[3] is None or place in self.empty:
                return f"pairs[{place}].context"
            return f"pairs[{place}].continuation{match[4] or ''}"

        return _PATH.sub(path, text)

    def _of_pairs(self, error: ScoringError) -> ScoringError:
        found = in_callers_indices(error, self)
        found.item_errors = tuple(
            ItemError(self.translate(item.path), self._of_pairs(item.error))
            for item in error.item_errors
        )
        return found


def _grouped(pairs: Iterable[Pair], *, next_token: bool) -> _Groups:
    """Return pairs as groups.

    The client divides calls between groups and never within. So a context with very many
    continuations, such as the one token before every text, stands in several groups: each large
    enough that its context, if it has to be computed again, costs an eighth of it at most.

    Raises:
        InvalidRequestError: as of ``score_pairs``.
    """
    by_context: dict[tuple[int, ...], list[_Asked]] = {}
    empty = set()
    for place, pair in enumerate(pairs):
        context, continuation = _ids_of_pair(pair, f"pairs[{place}]")
        if continuation:
            asked = (place, continuation), len(continuation)
            by_context.setdefault(tuple(context), []).append(asked)
        elif next_token:
            raise invalid(
                f"pairs[{place}]",
                "what follows an empty continuation is what follows its context: give the "
                "context's last token as the continuation",
            )
        else:
            # A message cannot hold an empty completion: no row of the context's end, or of any
            # token where the context is one alone.
            empty.add(place)
            prompt, end = (context[:-1], context[-1:]) if len(context) > 1 else (context, [0])
            by_context.setdefault(tuple(prompt), []).append(((place, Completion(end, rows=())), 1))
    groups, places = [], []
    for shared, sized in by_context.items():
        for part in batches(sized, max(NEVER_DIVIDED_BELOW, 8 * len(shared))):
            groups.append(PromptGroup(shared, [completion for _, completion in part]))
            places.append([place for place, _ in part])
    return _Groups(groups, places, empty)


def _ids_of_pair(pair: Any, path: str) -> tuple[list[int], list[int]]:
    """Return the ids of context and continuation, whatever sequences of integers they are.

    Raises:
        InvalidRequestError: it is no pair of them.
    """
    try:
        context, continuation = pair
    except (TypeError, ValueError) as error:
        raise invalid(path, f"expected (context, continuation), got {short_repr(pair)}") from error
    return _ids(context, f"{path}.context"), _ids(continuation, f"{path}.continuation")


def _ids(tokens: Any, path: str) -> list[int]:
    found = as_text_or_ids(tokens, path)
    if isinstance(found, str):
        raise invalid(path, "expected token ids, got text; text_ids.TextIds makes ids of it")
    ids: list[int] = found.tolist()
    return ids
