"""verl's teacher manager, answered by a scoring server (verl 0.9).

    class Worker(ServedTeacher, AgentLoopWorker):
        def make_teacher(self):
            return TeacherManager(AsyncScoringClient("teacher:50051"), topk=64)

Row i predicts token i + 1, and a last row of zeros stands for the token that nobody wrote. verl's
own teacher scores at temperature 1 whatever the configuration says; here it is applied. verl's
losses look at responses alone: where the prompt's length is known, its rows are zeros too and its
computation is shared by all rollouts of a prompt.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextvars import ContextVar
from typing import Any

import numpy as np
import torch

from scoring_client.aio import AsyncScoringClient
from scoring_client.prompt_end import PromptLength, only_first_token

# Each rollout is a task with a context of its own.
_PROMPT_LENGTH: ContextVar[int | None] = ContextVar("prompt_length", default=None)


def worker_prompt_length(token_ids: Sequence[int]) -> int:
    """Return the length of the prompt whose rollout a ``ServedTeacher`` has scored now."""
    known = _PROMPT_LENGTH.get()
    return only_first_token(token_ids) if known is None else known


class TeacherManager:
    """The part of verl's ``AsyncTeacherLLMServerManager`` that its agent loop calls."""

    def __init__(
        self,
        clients: AsyncScoringClient | Mapping[str, AsyncScoringClient],
        *,
        topk: int = 0,
        temperature: float = 1.0,
        token_id_limit: int | None = None,
        prompt_length: PromptLength = worker_prompt_length,
    ) -> None:
        """Answer from one teacher, or from several by routing key; they stay open.

        Args:
            clients: A client, or one for each routing key.
            topk: Tokens listed for each row, as verl's ``use_topk`` losses want; 0 = none.
            temperature: Divisor of the teacher's logits.
            token_id_limit: Only ids below it are listed: the student's vocabulary, when smaller.
            prompt_length: Leading tokens of a sequence that no loss looks at; the default knows it
                inside a ``ServedTeacher``, and otherwise scores every token.
        """
        self._clients, self._prompt_length = clients, prompt_length
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

        Rows that predict the prompt's tokens are zeros.

        Raises:
            ValueError: images, video or audio, or a routing key without a teacher.
            ScoringError: see ``scoring_client.errors``.
        """
        if any(part is not None and len(part) for part in (multi_modal_data or {}).values()):
            raise ValueError("the scoring service takes tokens only, no images, video or audio")
        client = self._teacher(routing_key)
        length, start = len(sequence_ids), max(self._prompt_length(sequence_ids), 1)
        ids = np.zeros((length, max(self._topk, 1)), dtype=np.int32)
        logprobs = np.zeros((length, max(self._topk, 1)), dtype=np.float32)
        if start < length:
            group, rows = (sequence_ids[:start], [sequence_ids[start:]]), slice(start - 1, -1)
            if self._topk:
                top = await client.topk_logprobs(
                    [group], self._topk, token_id_limit=self._limit, temperature=self._temperature
                )
                ids[rows], logprobs[rows] = top[0][0].top_token_ids, top[0][0].top_logprobs
            else:
                scores = await client.score([group], temperature=self._temperature)
                ids[rows, 0], logprobs[rows, 0] = sequence_ids[start:], scores[0][0].logprobs
        return torch.from_numpy(ids), torch.from_numpy(logprobs)

    def _teacher(self, routing_key: str | None) -> AsyncScoringClient:
        if not isinstance(self._clients, Mapping):
            return self._clients
        if len(self._clients) == 1:
            return next(iter(self._clients.values()))
        if routing_key is None or routing_key not in self._clients:
            raise ValueError(f"no teacher for routing key {routing_key!r}: {list(self._clients)}")
        return self._clients[routing_key]


class ServedTeacher:
    """Mixin before verl's ``AgentLoopWorker``: its teacher is a server, and prompts are shared.

    verl's manager is asked for one sequence and is not told where its response begins; its worker
    knows. A worker asks ``make_teacher`` for its teacher at its first rollout, in its own process.
    """

    _served: TeacherManager | None = None

    def make_teacher(self) -> TeacherManager:
        """Return the teacher; yours to write."""
        raise NotImplementedError(f"{type(self).__name__} has no make_teacher")

    async def _compute_teacher_logprobs(
        self, output: Any, prompt_ids: list[int], *args: Any, **kwargs: Any
    ) -> None:
        if self._served is None:
            self._served = self.teacher_server_manager = self.make_teacher()
        before = _PROMPT_LENGTH.set(len(prompt_ids))
        try:
            # The mixin stands before verl's class, which has it.
            await super()._compute_teacher_logprobs(output, prompt_ids, *args, **kwargs)  # type: ignore[misc]
        finally:
            _PROMPT_LENGTH.reset(before)
