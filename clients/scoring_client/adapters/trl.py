"""TRL's ``VLLMClient.get_sequence_logprobs``, answered by a scoring server (TRL 1.16).

    with as_teacher(ScoringClient("localhost:50051")):
        trainer = ServerDistillationTrainer(...)

For the trainers of ``trl.experimental`` that call it: server_distillation, sdft, sdpo, iw_opd.
Where vLLM ignores the temperature it is applied here, and a realised token outside the top-k has
its own log-prob instead of -inf.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from typing import Any

from scoring_client.client import ScoringClient
from scoring_client.inputs import PromptGroup


class TeacherClient:
    """The part of TRL's ``VLLMClient`` that its trainers use of a teacher."""

    def __init__(self, client: ScoringClient, *, token_id_limit: int | None = None) -> None:
        """Answer from ``client``, which stays open.

        Args:
            client: Of the teacher's server.
            token_id_limit: Only ids below it are listed: the student's vocabulary, when smaller.
        """
        self._client, self._limit = client, token_id_limit

    def get_sequence_logprobs(
        self,
        sequences: list[list[int]],
        prompt_lengths: list[int],
        top_logprobs: int = 100,
        temperature: float = 1.0,
        chunk_size: int = 0,
        max_concurrent_requests: int = 4,
    ) -> dict[str, list[Any]]:
        """Return the teacher's log-probs of completions; lists [batch][completion][k].

        Args:
            sequences: Prompt and completion of each, as token ids.
            prompt_lengths: Tokens of each prompt; at least 1, for nothing predicts the first token.
            top_logprobs: Tokens listed for each row.
            temperature: Divisor of the teacher's logits, above 0.
            chunk_size: Sequences a call; 0 = all in one, which lets the server order the work.
            max_concurrent_requests: Calls at a time.

        Returns:
            ``logprobs`` and ``logprob_token_ids`` with k entries a row, best first;
            ``actual_logprobs`` and ``actual_token_ids`` with the realised token's.

        Raises:
            ValueError: temperature <= 0, or another number of prompt lengths.
            ScoringError: see ``scoring_client.errors``.
        """
        if temperature <= 0:
            raise ValueError(f"temperature must be positive, got {temperature}")
        groups = [
            PromptGroup(ids[:length], [ids[length:]])
            for ids, length in zip(sequences, prompt_lengths, strict=True)
        ]
        size = chunk_size if chunk_size > 0 else max(len(groups), 1)
        parts = [groups[start : start + size] for start in range(0, len(groups), size)]
        ask = partial(
            self._client.topk_logprobs,
            k=top_logprobs,
            temperature=temperature,
            token_id_limit=self._limit,
        )
        with ThreadPoolExecutor(max(min(max_concurrent_requests, len(parts)), 1)) as pool:
            rows = [scores for results in pool.map(ask, parts) for scores in results.completions()]
        return {
            "logprobs": [scores.top_logprobs.tolist() for scores in rows],
            "logprob_token_ids": [scores.top_token_ids.tolist() for scores in rows],
            "actual_logprobs": [scores.logprobs[:, None].tolist() for scores in rows],
            "actual_token_ids": [scores.token_ids[:, None].tolist() for scores in rows],
        }


@contextmanager
def as_teacher(
    client: ScoringClient, *, token_id_limit: int | None = None
) -> Iterator[TeacherClient]:
    """Trainers made inside get this teacher where they would connect to a vLLM server.

    Their constructors make a ``VLLMClient``, which needs vLLM installed and a server of it. A
    trainer that exists already takes a ``TeacherClient`` as its ``teacher_client``.
    """
    from trl.generation import vllm_client

    teacher, vllm = TeacherClient(client, token_id_limit=token_id_limit), vllm_client.VLLMClient
    vllm_client.VLLMClient = lambda *_, **__: teacher
    try:
        yield teacher
    finally:
        vllm_client.VLLMClient = vllm
