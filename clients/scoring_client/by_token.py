"""What a model says of each token of a text, in the layout that frameworks use for prompts.

Entry i describes token i; entry 0, which nothing predicts, is missing. L tokens, K top-K,
C candidates.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from scoring_client.aio import AsyncScoringClient
from scoring_client.client import ScoringClient
from scoring_client.ragged import RaggedCandidates
from scoring_client.values.arrays import Float32Array, Int32Array
from scoring_client.values.inputs import Completion, PromptGroup
from scoring_client.values.results import CompletionScores, CompletionTopK


@dataclass(frozen=True, slots=True, eq=False)
class TokenScores:
    """Scores of a text's tokens; where nothing was asked, an id is -1 and a log-prob missing."""

    token_ids: Int32Array
    """[L], the text's own."""
    logprobs: Float32Array
    """[L], nats, after temperature."""
    top_token_ids: Int32Array
    """[L, K]."""
    top_logprobs: Float32Array
    """[L, K], nats, after temperature."""
    candidate_logprobs: Float32Array | None
    """In the order of the candidates' ids, when they were given; NaN where -1 stood."""

    def logprob_list(self) -> list[float | None]:
        """Return the log-probs as lists have them: None where one is NaN."""
        return [None if np.isnan(value) else float(value) for value in self.logprobs]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class TokenQuestion:
    """What is asked of a text's tokens, in one pass.

    What stands before the first row that is wanted goes as the prompt: it costs no row of the
    head, and texts that begin with the same tokens share it, in one call or in many.
    """

    token_ids: Sequence[int]
    """The whole text."""
    first: int = 1
    """First token that is scored, at least 1."""
    k: int = 0
    """Tokens listed at each position; 0 = none."""
    candidates: RaggedCandidates | None = None
    """Ids whose log-probs are wanted in the place of each of the L tokens, those before ``first``
    too; none in that of token 0."""
    temperature: float = 1.0
    """Divisor of the logits."""
    token_id_limit: int | None = None
    """Only ids below it are listed."""
    missing: float = np.nan
    """What stands for a log-prob that was not asked."""

    def __post_init__(self) -> None:
        """Check what is asked.

        Raises:
            ValueError: something of token 0, which nothing predicts, or candidates of another
                number of tokens.
        """
        if self.first < 1:
            raise ValueError(f"first must be at least 1, got {self.first}")
        if self.candidates is None:
            return
        tokens, rows = len(self.token_ids), len(self.candidates.padded)
        if rows != tokens:
            raise ValueError(f"the candidates are those of {rows} tokens, the text has {tokens}")
        if self.candidates.first_row == 0:
            raise ValueError("a candidate in the place of token 0, which nothing predicts")

    @property
    def start(self) -> int:
        """The first token that the request scores: ``first``, or an earlier one with candidates."""
        asked = None if self.candidates is None else self.candidates.first_row
        return self.first if asked is None else min(self.first, asked)

    def ask(self, client: ScoringClient) -> TokenScores:
        """Return the answer of a server; a text without a token to score costs no call.

        Raises:
            ScoringError: see ``scoring_client.errors``.
        """
        if self.start >= len(self.token_ids):
            return self._laid_out(None)
        group = [self._group()]
        if not self.k:
            return self._laid_out(client.score(group, temperature=self.temperature)[0][0])
        found = client.topk_logprobs(
            group, self.k, temperature=self.temperature, token_id_limit=self.token_id_limit
        )
        return self._laid_out(found[0][0])

    async def ask_async(self, client: AsyncScoringClient) -> TokenScores:
        """Do the same from an event loop.

        Raises:
            ScoringError: see ``scoring_client.errors``.
        """
        if self.start >= len(self.token_ids):
            return self._laid_out(None)
        group = [self._group()]
        if not self.k:
            return self._laid_out((await client.score(group, temperature=self.temperature))[0][0])
        found = await client.topk_logprobs(
            group, self.k, temperature=self.temperature, token_id_limit=self.token_id_limit
        )
        return self._laid_out(found[0][0])

    def _group(self) -> PromptGroup:
        asked = None if self.candidates is None else self.candidates.padded[self.start :]
        completion = Completion(self.token_ids[self.start :], candidates=asked)
        return PromptGroup(self.token_ids[: self.start], [completion])

    def _laid_out(self, scores: CompletionScores | None) -> TokenScores:
        """Return an answer's rows by token; None = nothing was asked."""
        length, skipped = len(self.token_ids), self.first - self.start
        candidate_logprobs = None
        if self.candidates and scores and scores.candidate_logprobs is not None:
            candidate_logprobs = self.candidates.flat(scores.candidate_logprobs, self.start)
        found = TokenScores(
            np.full(length, -1, np.int32),
            np.full(length, self.missing, np.float32),
            np.full((length, self.k), -1, np.int32),
            np.full((length, self.k), self.missing, np.float32),
            candidate_logprobs,
        )
        if scores is not None:
            found.token_ids[self.first :] = self.token_ids[self.first :]
            found.logprobs[self.first :] = scores.logprobs[skipped:]
        if isinstance(scores, CompletionTopK):
            found.top_token_ids[self.first :] = scores.top_token_ids[skipped:]
            found.top_logprobs[self.first :] = scores.top_logprobs[skipped:]
        return found
