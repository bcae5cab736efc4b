"""verl's teacher manager, answered by a scoring server (verl 0.9).

Row i predicts token i + 1, and a last row of zeros stands for the token that nobody wrote. verl's
own teacher scores at temperature 1 whatever the configuration says; here it is applied. verl's
losses look at responses alone: where the prompt's length is known, as under ``verl_worker``, its
rows are zeros too, and its computation is shared by all rollouts of a prompt.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import KW_ONLY, dataclass
from typing import Any

import numpy as np
import torch

from scoring_client.aio import AsyncScoringClient
from scoring_client.by_token import TokenQuestion
from scoring_client.prompt_end import PromptLength, as_told


@dataclass(frozen=True, slots=True)
class TeacherManager:
    """The part of verl's ``AsyncTeacherLLMServerManager`` that its agent loop calls."""

    clients: AsyncScoringClient | Mapping[str, AsyncScoringClient]
    """The teacher's client, or one for each routing key; they stay open."""
    _: KW_ONLY
    topk: int = 0
    """Tokens listed for each row, as verl's ``use_topk`` losses want; 0 = none."""
    temperature: float = 1.0
    """Divisor of the teacher's logits."""
    token_id_limit: int | None = None
    """Only ids below it are listed: the student's vocabulary, when smaller."""
    prompt_length: PromptLength = as_told
    """Leading tokens of a sequence that no loss looks at; untold, every token is scored."""

    async def compute_teacher_logprobs_single(
        self,
        sequence_ids: list[int],
        multi_modal_data: dict[str, Any] | None = None,
        mm_processor_kwargs: dict[str, Any] | None = None,
        mm_processor_output: list[dict[str, Any]] | None = None,
        routing_key: str | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return ids int32 [S, K] and log-probs float32 [S, K] of an unpadded sequence.

        Rows that predict the prompt's tokens are zeros. Without a list K is 1: the realised token.

        Raises:
            ValueError: images, video or audio, or a routing key without a teacher.
            ScoringError: see ``scoring_client.errors``.
        """
        if any(part is not None and len(part) for part in (multi_modal_data or {}).values()):
            raise ValueError("the scoring service takes tokens only, no images, video or audio")
        asked = TokenQuestion(
            token_ids=sequence_ids,
            first=max(self.prompt_length(sequence_ids), 1),
            k=self.topk,
            temperature=self.temperature,
            token_id_limit=self.token_id_limit,
            missing=0.0,
        )
        scores = await asked.ask_async(self._teacher(routing_key))
        ids, logprobs = scores.token_ids[:, None], scores.logprobs[:, None]
        if self.topk:
            ids, logprobs = scores.top_token_ids, scores.top_logprobs
        # By token, entry i is of token i: entry 0, which nothing predicts, becomes the last row.
        ids, logprobs = np.roll(ids.clip(0), -1, axis=0), np.roll(logprobs, -1, axis=0)
        return torch.from_numpy(ids), torch.from_numpy(logprobs)

    def _teacher(self, routing_key: str | None) -> AsyncScoringClient:
        if not isinstance(self.clients, Mapping):
            return self.clients
        if len(self.clients) == 1:
            return next(iter(self.clients.values()))
        if routing_key is None or routing_key not in self.clients:
            raise ValueError(f"no teacher for routing key {routing_key!r}: {list(self.clients)}")
        return self.clients[routing_key]
