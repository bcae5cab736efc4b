"""A lower bound of what a request costs, counted without reading it."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from scoring_client.proto import sample_pb2
from scoring_service.rpc.parsing.items import MAX_ITEMS
from scoring_service.rpc.parsing.model_view import ModelView

_MAX_SEQUENCES = 4096
"""Sequences of a request that are looked at: five milliseconds."""

_MAX_CHARACTERS = 1 << 20
"""Of all texts of a request that are looked at: as long again."""

_TEXT = 2048
"""Characters that take as long as to look at a text at all."""


@dataclass(slots=True)
class _Lengths:
    """Tokens of sequences, at least; of texts beyond what is looked at, none."""

    view: ModelView
    left: int = _MAX_CHARACTERS
    """Characters still to be looked at."""

    def of(self, sequence: Any) -> int:
        """Tokens of a sequence, at least."""
        ids = len(sequence.token_ids)
        if ids or self.view.text is None or self.left <= 0:
            return ids
        text = sequence.text[: self.left]
        self.left -= len(text) + _TEXT
        return self.view.text.token_lower_bound(text)


def token_lower_bound(request: Any, view: ModelView, enough: int) -> int:
    """Tokens, as the queue counts them, that a call has at least if its items have no fault.

    Args:
        request: of an RPC of ScoringService that streams.
        view: the model.
        enough: the count ends where it has reached so many.
    """
    costs = _of_samples if isinstance(request, sample_pb2.SampleRequest) else _of_scores
    total = 0
    for cost in itertools.islice(costs(request, _Lengths(view)), _MAX_SEQUENCES):
        total += cost
        if total >= enough:
            break
    return total


def _of_scores(request: Any, lengths: _Lengths) -> Iterator[int]:
    """Of each completion, with its prompt; those too long to be computed cost nothing."""
    most = lengths.view.limits.max_sequence_tokens
    for group in request.groups:
        prompt = lengths.of(group.prompt)
        for completion in group.completions:
            length = prompt + lengths.of(completion)
            yield length if length <= most else 0


def _of_samples(request: sample_pb2.SampleRequest, lengths: _Lengths) -> Iterator[int]:
    """Of each prompt, with its samples; those that cannot be drawn cost nothing."""
    n = request.n if request.HasField("n") else 1
    longest = request.sampling.max_tokens
    for prompt in request.prompts:
        samples = prompt.n if prompt.HasField("n") else n
        own = prompt.sampling
        length = lengths.of(prompt)
        tokens = own.max_tokens if own.HasField("max_tokens") else longest
        fits = tokens >= 1 and length + tokens <= lengths.view.limits.max_sequence_tokens
        yield length + samples * tokens if fits and 1 <= samples <= MAX_ITEMS else 0
