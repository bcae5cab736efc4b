"""verl's teacher manager, answered by a scoring server (verl 0.9).

    agent_loop_worker.teacher_server_manager = TeacherManager(AsyncScoringClient("teacher:50051"))

Row i predicts token i + 1, and a last row of zeros stands for the token that nobody wrote. verl's
own teacher scores at temperature 1 whatever the configuration says; here it is applied.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from scoring_client.aio import AsyncScoringClient


class TeacherManager:
    """The part of verl's ``AsyncTeacherLLMServerManager`` that its agent loop calls."""

    def __init__(
        self,
        clients: AsyncScoringClient | Mapping[str, AsyncScoringClient],
        *,
        topk: int = 0,
        temperature: float = 1.0,
        token_id_limit: int | None = None,
    ) -> None:
        """Answer from one teacher, or from several by routing key; they stay open.

        Args:
            clients: A client, or one for each routing key.
            topk: Tokens listed for each row, as verl's ``use_topk`` losses want; 0 = none.
            temperature: Divisor of the teacher's logits.
            token_id_limit: Only ids below it are listed: the student's vocabulary, when smaller.
        """
        self._clients = clients
        self._topk, self._temperature, self._limit = topk, temperature, token_id_limit

    async def compute_teacher_logprobs_single(
        self,
        sequence_ids: list[int],
        multi_modal_data: dict[str, Any] | None = None,
        mm_processor_kwargs: dict[str, Any] | None = None,
        mm_processor_output: list[dict[str, Any]] | None = None,
        routing_key: str | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return ids int32 [S, K] and log-probs float32 [S, K] of an unpadded sequence.

        Raises:
            ValueError: images, video or audio, or a routing key without a teacher.
            ScoringError: see ``scoring_client.errors``.
        """
        if any(part is not None and len(part) for part in (multi_modal_data or {}).values()):
            raise ValueError("the scoring service takes tokens only, no images, video or audio")
        client = self._teacher(routing_key)
        width = max(self._topk, 1)
        ids = np.zeros((len(sequence_ids), width), dtype=np.int32)
        logprobs = np.zeros((len(sequence_ids), width), dtype=np.float32)
        group = (sequence_ids[:1], [sequence_ids[1:]])
        if len(sequence_ids) > 1 and self._topk:
            top = await client.topk_logprobs(
                [group], self._topk, token_id_limit=self._limit, temperature=self._temperature
            )
            ids[:-1], logprobs[:-1] = top[0][0].top_token_ids, top[0][0].top_logprobs
        elif len(sequence_ids) > 1:
            scores = await client.score([group], temperature=self._temperature)
            ids[:-1, 0], logprobs[:-1, 0] = sequence_ids[1:], scores[0][0].logprobs
        return torch.from_numpy(ids), torch.from_numpy(logprobs)

    def _teacher(self, routing_key: str | None) -> AsyncScoringClient:
        if not isinstance(self._clients, Mapping):
            return self._clients
        if len(self._clients) == 1:
            return next(iter(self._clients.values()))
        if routing_key is None or routing_key not in self._clients:
            raise ValueError(f"no teacher for routing key {routing_key!r}: {list(self._clients)}")
        return self._clients[routing_key]
