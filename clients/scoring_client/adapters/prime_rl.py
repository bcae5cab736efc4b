"""prime-rl's teacher pool, answered by a scoring server.

    algorithm.teacher_pool = TeacherPool(AsyncScoringClient("localhost:50051"))

``score`` is all that prime-rl's opd and opsd algorithms ask of a teacher. prime-rl is not imported:
the hook is plain lists.
"""

from __future__ import annotations

from scoring_client.aio import AsyncScoringClient


class TeacherPool:
    """The part of prime-rl's ``InferencePool`` that a teacher has to have."""

    def __init__(self, client: AsyncScoringClient, *, temperature: float = 1.0) -> None:
        """Answer from ``client``, which stays open.

        Args:
            client: Of the teacher's server.
            temperature: Divisor of the teacher's logits. prime-rl's own pool scores at 1.
        """
        self._client, self._temperature = client, temperature

    async def score(self, token_ids: list[int]) -> list[float]:
        """Return a log-prob for each token, 0.0 for the first, which nothing predicts.

        Raises:
            ScoringError: see ``scoring_client.errors``.
        """
        if len(token_ids) < 2:
            return [0.0] * len(token_ids)
        group = (token_ids[:1], [token_ids[1:]])
        results = await self._client.score([group], temperature=self._temperature)
        return [0.0, *results[0][0].logprobs.tolist()]

    async def stop(self) -> None:
        """Nothing to stop: the client belongs to the caller."""
