"""What a model says of each token of a text, in the layout that frameworks use for prompts.

Entry i describes token i; entry 0, which nothing predicts, is NaN. L tokens, K top-K, C candidates.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from scoring_client.arrays import Float32Array, Int32Array
from scoring_client.client import ScoringClient
from scoring_client.inputs import Completion, PromptGroup, SamplePrompt
from scoring_client.ragged import RaggedCandidates
from scoring_client.results import CompletionScores


@dataclass(frozen=True, slots=True, eq=False)
class TokenScores:
    """Scores of a text's tokens, at temperature 1; NaN where nothing was asked."""

    logprobs: Float32Array
    """[L]."""
    top_token_ids: Int32Array
    """[L, K]; -1 where nothing was asked."""
    top_logprobs: Float32Array
    """[L, K]."""
    candidate_logprobs: Float32Array | None
    """In the order of the candidates' ids, when they were given; NaN where -1 stood."""


def score_tokens(
    client: ScoringClient,
    token_ids: Sequence[int],
    *,
    first: int = 1,
    k: int = 0,
    candidates: RaggedCandidates | None = None,
) -> TokenScores:
    """Return what a model says of the tokens from ``first`` on, and of candidates, in one pass.

    What stands before the first row that is wanted goes as the prompt: it costs no row of the
    head, and texts that begin with the same tokens share it, in one call or in many.

    Args:
        client: Of the server.
        token_ids: The whole text.
        first: First token that is scored, at least 1.
        k: Tokens listed at each position.
        candidates: Ids whose log-probs are wanted in the place of each of the L tokens, those
            before ``first`` too; none in that of token 0.

    Raises:
        ScoringError: see ``scoring_client.errors``.
    """
    length = len(token_ids)
    logprobs = np.full(length, np.nan, np.float32)
    top_ids, top_logprobs = (
        np.full((length, k), -1, np.int32),
        np.full((length, k), np.nan, np.float32),
    )
    start = first
    if candidates is not None and candidates.first_row is not None:
        start = min(first, candidates.first_row)
    if start >= length:
        return TokenScores(logprobs, top_ids, top_logprobs, None)
    asked = None if candidates is None else candidates.padded[start:]
    group = PromptGroup(token_ids[:start], [Completion(token_ids[start:], candidates=asked)])
    scores: CompletionScores
    if k:
        scores = top = client.topk_logprobs([group], k)[0][0]
        top_ids[first:] = top.top_token_ids[first - start :]
        top_logprobs[first:] = top.top_logprobs[first - start :]
    else:
        scores = client.score([group])[0][0]
    logprobs[first:] = scores.logprobs[first - start :]
    answered = None
    if candidates is not None and scores.candidate_logprobs is not None:
        answered = candidates.flat(scores.candidate_logprobs, start)
    return TokenScores(logprobs, top_ids, top_logprobs, answered)


def redraw_tokens(
    client: ScoringClient,
    token_ids: Sequence[int],
    n: int,
    *,
    temperature: float = 1.0,
    seed: int | None = None,
) -> tuple[Int32Array, Float32Array]:
    """Return n draws in the place of each token but the first, and the model's log-probs of them.

    Args:
        client: Of the server.
        token_ids: The whole text, at least two tokens.
        n: Draws a position.
        temperature: Of the draws; the log-probs are at temperature 1.
        seed: Of all positions. Equal seeds are no harm here: random numbers depend on the position.

    Returns:
        Ids [L - 1, n] and log-probs [L - 1, n]: row i stands for token i + 1.

    Raises:
        ScoringError: see ``scoring_client.errors``.
    """
    prompts = [SamplePrompt(token_ids[:end], n=n, seed=seed) for end in range(1, len(token_ids))]
    drawn = client.sample(prompts, max_tokens=1, temperature=temperature, ignore_eos=True)
    ids = np.array([[sample.token_ids[0] for sample in row] for row in drawn], dtype=np.int32)
    asked = PromptGroup(token_ids[:1], [Completion(token_ids[1:], candidates=ids)])
    logprobs = client.score([asked])[0][0].candidate_logprobs
    return ids, np.asarray(logprobs)
