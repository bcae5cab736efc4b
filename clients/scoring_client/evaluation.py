"""What evaluations ask: how likely continuations are, and how likely whole texts."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import islice
from typing import NamedTuple

import numpy as np

from scoring_client.client import ScoringClient
from scoring_client.pairs import Pair, fitting, score_pairs, windows


class Likelihood(NamedTuple):
    """How likely a continuation is."""

    logprob: float
    """Of all its tokens together, in nats."""
    greedy: bool
    """Whether greedy decoding gives it: each of its tokens is the likeliest."""


def likelihoods(
    client: ScoringClient,
    pairs: Iterable[Pair],
    max_length: int,
    *,
    timeout: float | None = None,
) -> list[Likelihood]:
    """Return how likely each continuation is after its context, in order.

    Args:
        client: Of the server.
        pairs: Contexts and continuations.
        max_length: Most tokens of a pair; longer ones lose their left (``pairs.fitting``).
        timeout: Seconds for all of them; None, unlike the client's own, is as long as it takes.

    Raises:
        ValueError: max_length < 2.
        ScoringError: see ``scoring_client.errors``.
    """
    fitted = (fitting(pair, max_length) for pair in pairs)
    found = score_pairs(client, fitted, rank=True, timeout=timeout)
    return [
        Likelihood(float(scores.logprobs.sum(dtype=float)), bool(np.all(scores.ranks == 1)))
        for scores in found
    ]


def text_likelihoods(
    client: ScoringClient,
    texts: Iterable[Sequence[int]],
    start_token_id: int,
    max_length: int,
    *,
    timeout: float | None = None,
) -> list[float]:
    """Return the log-probs of whole texts, in nats, each a sum over all of its tokens.

    Args:
        client: Of the server.
        texts: Token ids.
        start_token_id: What stands before each text, such as ``start_token_id`` of ``model_info``.
        max_length: Most tokens at a time; longer texts come in ``pairs.windows``.
        timeout: Seconds for all of them; None, unlike the client's own, is as long as it takes.

    Raises:
        ValueError: max_length < 2.
        ScoringError: see ``scoring_client.errors``.
    """
    divided = [windows(text, start_token_id, max_length) for text in texts]
    pairs = (pair for pairs in divided for pair in pairs)
    parts = iter(likelihoods(client, pairs, max_length, timeout=timeout))
    return [
        sum((part.logprob for part in islice(parts, len(pairs))), start=0.0) for pairs in divided
    ]
