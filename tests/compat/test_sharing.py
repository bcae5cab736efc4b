"""What the adapters have computed: a prompt once, however many rollouts of it come, and when."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from scoring_client import AsyncScoringClient, ScoringClient
from scoring_client.adapters.prime_rl import TeacherPool
from scoring_client.adapters.verl import TeacherManager
from scoring_client.adapters.verl_worker import ServedTeacher
from scoring_client.by_token import TokenQuestion
from scoring_client.prompt_end import after_first, only_first_token
from scoring_client.ragged import RaggedCandidates
from scoring_client.values.provenance import Usage
from tests.compat.conftest import Plain, texts
from tests.compat.hooks import described, recorded

MARKER = [3, 7, 3]
PROMPT, ANSWER, ROLLOUTS = 150, 20, 4


class Counted(AsyncScoringClient):
    """A client that adds up what its calls cost."""

    spent = Usage()

    async def score(self, *args: Any, **kwargs: Any) -> Any:
        results = await super().score(*args, **kwargs)
        self.spent += results.usage
        return results

    async def topk_logprobs(self, *args: Any, **kwargs: Any) -> Any:
        results = await super().topk_logprobs(*args, **kwargs)
        self.spent += results.usage
        return results


class CountedSync(ScoringClient):
    """The same, without asyncio."""

    spent = Usage()

    def score(self, *args: Any, **kwargs: Any) -> Any:
        results = super().score(*args, **kwargs)
        self.spent += results.usage
        return results


def rollouts(seed: int) -> list[list[int]]:
    """Rollouts of one prompt that nobody asked for before; the prompt ends with the marker."""
    (prompt,) = texts(1, PROMPT - len(MARKER), seed=seed)
    answers = texts(ROLLOUTS, ANSWER, seed=seed + 1)
    return [[*prompt, *MARKER, *answer] for answer in answers]


def counted(target: str, ask: Callable[[Counted], Awaitable[Any]]) -> tuple[Any, Usage]:
    async def main() -> tuple[Any, Usage]:
        async with Counted(target) as client:
            return await ask(client), client.spent

    return asyncio.run(main())


def assert_shared(spent: Usage) -> None:
    """The prompt once, and of each rollout its answer; at most a token more to begin a row from."""
    once = PROMPT + ROLLOUTS * ANSWER
    assert once - ROLLOUTS <= spent.computed_tokens <= once + ROLLOUTS
    assert spent.head_rows == ROLLOUTS * ANSWER


@pytest.mark.parametrize("together", [True, False])
def test_prime_rl(target: str, plain: Plain, together: bool) -> None:
    sequences = rollouts(100 + together)

    async def ask(client: Counted) -> list[list[float]]:
        pool = TeacherPool(client, prompt_length=after_first(MARKER))
        if together:
            return await asyncio.gather(*(pool.score(ids) for ids in sequences))
        return [await pool.score(ids) for ids in sequences]

    answers, spent = counted(target, ask)
    assert_shared(spent)
    for ids, logprobs in zip(sequences, answers, strict=True):
        assert logprobs[:PROMPT] == [0.0] * PROMPT
        np.testing.assert_allclose(logprobs[PROMPT:], plain.realised(ids)[PROMPT - 1 :], atol=1e-4)


class Loop:
    """The part of verl's agent-loop worker that a `ServedTeacher` stands before (verl 0.9.1)."""

    teacher_server_manager: Any = None

    async def _compute_teacher_logprobs(
        self,
        output: Any,
        prompt_ids: list[int],
        response_ids: list[int],
        validate: bool,
        sample_kwargs: dict[str, Any] | None = None,
    ) -> None:
        if not validate:
            found = await self.teacher_server_manager.compute_teacher_logprobs_single(
                sequence_ids=prompt_ids + response_ids, routing_key=None
            )
            output.extra_fields["teacher_ids"], output.extra_fields["teacher_logprobs"] = found


@pytest.mark.parametrize("topk", [0, 6])
def test_verl(target: str, plain: Plain, topk: int) -> None:
    sequences = rollouts(200 + topk)

    async def ask(client: Counted) -> list[dict[str, torch.Tensor]]:
        class Worker(ServedTeacher, Loop):
            def make_teacher(self) -> TeacherManager:
                return TeacherManager(client, topk=topk)

        worker = Worker()
        outputs = [SimpleNamespace(extra_fields={}) for _ in sequences]
        await asyncio.gather(
            *(
                worker._compute_teacher_logprobs(
                    output, prompt_ids=ids[:PROMPT], response_ids=ids[PROMPT:], validate=False
                )
                for output, ids in zip(outputs, sequences, strict=True)
            )
        )
        # Outside of a rollout nothing is known of a sequence.
        whole, _ = await worker.make_teacher().compute_teacher_logprobs_single(sequences[0][:9])
        assert (whole[:-1].numpy() != 0).any(axis=1).all()
        return [output.extra_fields for output in outputs]

    answers, spent = counted(target, ask)
    assert_shared(Usage(computed_tokens=spent.computed_tokens - 8, head_rows=spent.head_rows - 8))
    for ids, fields in zip(sequences, answers, strict=True):
        found = fields["teacher_logprobs"]
        assert found.shape == (PROMPT + ANSWER, max(topk, 1))
        assert (found[: PROMPT - 1] == 0).all()
        assert (found[-1] == 0).all()
        rows = plain.logprobs(ids)[PROMPT - 1 : -1]
        best = rows.topk(topk, dim=1) if topk else None
        expected = plain.realised(ids)[PROMPT - 1 :, None] if best is None else best.values
        np.testing.assert_allclose(found[PROMPT - 1 : -1], expected, atol=1e-4)
        chosen = torch.tensor(ids[PROMPT:])[:, None] if best is None else best.indices
        assert torch.equal(fields["teacher_ids"][PROMPT - 1 : -1].long(), chosen)


def test_the_loop_is_verls() -> None:
    theirs = recorded("verl_worker")["_compute_teacher_logprobs"]
    assert described(Loop._compute_teacher_logprobs) == theirs


def test_a_verl_worker_without_a_teacher_says_so() -> None:
    class Worker(ServedTeacher, Loop):
        pass

    with pytest.raises(NotImplementedError, match="Worker has no make_teacher"):
        asyncio.run(Worker()._compute_teacher_logprobs(None, [1], [2], validate=False))


def test_tinker_last_n(target: str, plain: Plain) -> None:
    """As its adapter scores: the last tokens alone, with candidates in the first place."""
    sequences = rollouts(300)
    candidates = RaggedCandidates([5, 6], [0] * PROMPT + [2] + [0] * (ANSWER - 1))
    with CountedSync(target) as client:
        found = [
            TokenQuestion(token_ids=ids, first=PROMPT, candidates=candidates).ask(client)
            for ids in sequences
        ]
        assert_shared(client.spent)
    for ids, scores in zip(sequences, found, strict=True):
        expected = plain.realised(ids)[PROMPT - 1 :]
        np.testing.assert_allclose(scores.logprobs[PROMPT:], expected, atol=1e-4)
        asked = plain.logprobs(ids)[PROMPT - 1, [5, 6]]
        np.testing.assert_allclose(scores.candidate_logprobs, asked, atol=1e-4)


def test_where_a_prompt_ends() -> None:
    ends = after_first([8, 9])
    assert ends([1, 8, 9, 4, 8, 9, 5]) == 3, "the first answer, not the last"
    assert ends([8, 8, 9]) == 3
    assert ends([9, 8, 1, 9]) == 1, "no marker: every token is scored"
    assert only_first_token([]) == 0
    with pytest.raises(ValueError, match="empty marker"):
        after_first([])
