"""TRL's ``VLLMClient.get_sequence_logprobs``, answered by a scoring server (TRL 1.16).

    with as_teacher(ScoringClient("localhost:50051")):
        trainer = ServerDistillationTrainer(...)

TRL demands a ``teacher_model_server_url``, which nobody asks: docs/recipes.md has a whole config.

For server_distillation, sdft, sdpo and iw_opd of ``trl.experimental``. The temperature, which vLLM
ignores, is applied, and a realised token outside the top-k has its own log-prob instead of -inf.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from scoring_client.client import ScoringClient
from scoring_client.pairs import topk_pairs
from scoring_client.values.options import TopKOptions


@dataclass(frozen=True, slots=True)
class TeacherClient:
    """The part of TRL's ``VLLMClient`` that its trainers use of a teacher."""

    client: ScoringClient
    """Of the teacher's server; it stays open."""
    token_id_limit: int | None = None
    """Only ids below it are listed: the student's vocabulary, when smaller."""

    def get_sequence_logprobs(
        self,
        sequences: list[list[int]],
        prompt_lengths: list[int],
        top_logprobs: int = 100,
        temperature: float = 1.0,
        chunk_size: int = 0,
        max_concurrent_requests: int = 4,
    ) -> dict[str, list[list[list[float]]]]:
        """Return the teacher's log-probs of completions; lists [batch][completion][k].

        Args:
            sequences: Prompt and completion of each, as token ids.
            prompt_lengths: Tokens of each prompt; at least 1, for nothing predicts the first token.
            top_logprobs: Tokens listed for each row.
            temperature: Divisor of the teacher's logits, above 0.
            chunk_size: Of no effect: the client divides calls as suits the server.
            max_concurrent_requests: Of no effect either.

        Returns:
            ``logprobs`` and ``logprob_token_ids`` with k entries a row, best first;
            ``actual_logprobs`` and ``actual_token_ids`` with the realised token's.

        Raises:
            ValueError: temperature <= 0, or another number of prompt lengths.
            ScoringError: see ``scoring_client.errors``.
        """
        pairs = [(ids[:n], ids[n:]) for ids, n in zip(sequences, prompt_lengths, strict=True)]
        options: TopKOptions = {"temperature": temperature, "token_id_limit": self.token_id_limit}
        rows = topk_pairs(self.client, pairs, top_logprobs, **options)
        return {
            "logprobs": [scores.top_logprobs.tolist() for scores in rows],
            "logprob_token_ids": [scores.top_token_ids.tolist() for scores in rows],
            "actual_logprobs": [scores.logprobs[:, None].tolist() for scores in rows],
            "actual_token_ids": [scores.token_ids[:, None].tolist() for scores in rows],
        }


@contextmanager
def as_teacher(client: ScoringClient, token_id_limit: int | None = None) -> Iterator[TeacherClient]:
    """Give trainers made inside this teacher for the ``VLLMClient`` of a running vLLM server.

    A trainer that exists already takes a ``TeacherClient`` as its ``teacher_client``.
    """
    # The students' own generation binds the name at its import: it is to have TRL's, not this one.
    from trl.generation import vllm_client, vllm_generation  # noqa: F401

    teacher, theirs = TeacherClient(client, token_id_limit), vllm_client.VLLMClient
    vllm_client.VLLMClient = lambda *_, **__: teacher
    try:
        yield teacher
    finally:
        vllm_client.VLLMClient = theirs
