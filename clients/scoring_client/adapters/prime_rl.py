"""prime-rl's teacher pool, answered by a scoring server.

    algorithm.teacher_pool = TeacherPool(AsyncScoringClient("localhost:50051"))

``score`` is all that prime-rl's opd and opsd algorithms ask of a teacher. prime-rl is not imported:
the hook is plain lists. They keep the log-probs of sampled tokens alone, so with ``prompt_length``
the rest need not be computed anew for each rollout of a prompt.
"""

from __future__ import annotations

from scoring_client.aio import AsyncScoringClient
from scoring_client.by_token import TokenQuestion
from scoring_client.prompt_end import PromptLength, only_first_token


class TeacherPool:
    """The part of prime-rl's ``InferencePool`` that a teacher has to have."""

    def __init__(
        self,
        client: AsyncScoringClient,
        *,
        temperature: float = 1.0,
        prompt_length: PromptLength = only_first_token,
    ) -> None:
        """Answer from ``client``, which stays open.

        Args:
            client: Of the teacher's server.
            temperature: Divisor of the teacher's logits. prime-rl's own pool scores at 1.
            prompt_length: Leading tokens of a text that no loss looks at, such as
                ``prompt_end.after_first``: their log-probs are 0.0, and texts that share them share
                their computation.
        """
        self._client, self._temperature = client, temperature
        self._prompt_length = prompt_length

    async def score(self, token_ids: list[int]) -> list[float]:
        """Return a log-prob for each token, 0.0 for the prompt's: nothing predicts the first.

        Raises:
            ScoringError: see ``scoring_client.errors``.
        """
        first = max(self._prompt_length(token_ids), 1)
        asked = TokenQuestion(
            token_ids=token_ids, first=first, temperature=self._temperature, missing=0.0
        )
        logprobs: list[float] = (await asked.ask_async(self._client)).logprobs.tolist()
        return logprobs

    async def stop(self) -> None:
        """Nothing to stop: the client belongs to the caller."""
