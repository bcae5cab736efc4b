"""What is refused before anything is computed, because no step could hold it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from scoring_service.engine.attention.step_shape import step_shape
from scoring_service.engine.runner import INITIAL_CREDIT
from scoring_service.errors import Code, Reason, ServiceError
from scoring_service.peak_memory import StepLimits, largest_step, part_credit, step_bytes
from scoring_service.pool.admission.call_memory import call_work, check_memory
from scoring_service.pool.observer import PoolObserver
from scoring_service.types import (
    CompletionTask,
    GroupTask,
    Processing,
    RowWants,
    SampleCall,
    SamplingTask,
    ScoreCall,
)
from tests.pool.scripted import INFO, Scripted, ScriptedExecutor

VOCABULARY = 151_936
SHAPE = step_shape(
    {"hidden_size": 4096, "intermediate_size": 12_288, "num_attention_heads": 32, "head_dim": 128},
    vocab_size=VOCABULARY,
    element_bytes=2,
    residual_bytes=2,
    logit_bytes=4,
    device_type="cpu",
    compiled_attention=True,
    compiled_head=True,
    finishes_logits=False,
)
LIMITS = StepLimits(SHAPE, step_tokens=1087, chunk_tokens=64, max_samples=256, context=4096)


def a_score(rows: int, k: int = 0, candidates: int = 0) -> ScoreCall:
    ids = np.zeros((1, candidates), np.int32) if candidates else None
    completion = CompletionTask(0, np.zeros(rows, np.int32), ((0, rows),), ids)
    group = GroupTask(0, np.zeros(1, np.int32), (completion,), Processing(), 0)
    return ScoreCall(1, (group,), RowWants(top_k=k))


def a_sample(n: int, top_logprobs: int = 0) -> SampleCall:
    task = SamplingTask(0, np.zeros(8, np.int32), n, 0, 0, Processing(), 0, max_tokens=512)
    return SampleCall(1, (task,), top_logprobs)


def worker(extra: int) -> StepLimits:
    """One that has so much more than what it set aside for its largest step."""
    return replace(LIMITS, budget_bytes=step_bytes(SHAPE, largest_step(LIMITS)) + extra)


@pytest.mark.parametrize(
    "call",
    [a_score(1), a_score(100_000), a_score(100_000, k=1024), a_score(5000, candidates=1024),
     a_sample(10_000), a_sample(16, top_logprobs=64)],
    ids=["a row", "many rows", "many lists", "many candidates", "many samples", "top of samples"],
)  # fmt: skip
def test_what_is_merely_large_is_admitted(call: ScoreCall | SampleCall) -> None:
    check_memory(call, worker(0))


@pytest.mark.parametrize(
    "call",
    [a_score(64, k=VOCABULARY), a_score(64, candidates=2 * VOCABULARY),
     a_sample(256, top_logprobs=VOCABULARY)],
    ids=["all of the vocabulary", "candidates", "all of it for each sample"],
)  # fmt: skip
def test_what_no_step_can_hold_is_refused_for_good(call: ScoreCall | SampleCall) -> None:
    with pytest.raises(ServiceError, match="MiB beside weights and pages") as refused:
        check_memory(call, worker(0))
    assert refused.value.fault.reason is Reason.OUT_OF_MEMORY
    assert refused.value.fault.code is Code.RESOURCE_EXHAUSTED
    assert refused.value.fault.retry_after is None
    # The same call on a machine that has the memory.
    check_memory(call, worker(2 << 30))


def test_what_a_call_may_answer_in_a_step_is_predicted() -> None:
    """What its part may have on its way, or what any step may hold, if that is less."""
    for tokens, credit in ((128, 4 << 20), (1024, 18 << 20), (8192, 32 << 20), (65_536, 32 << 20)):
        limits = replace(LIMITS, step_tokens=tokens)
        assert part_credit(tokens) == credit
        most = min(max(INITIAL_CREDIT, credit), limits.answer_bytes)
        assert call_work(a_score(100_000, k=1024), limits).answer_bytes == most


def test_two_steps_of_wide_lists_may_be_on_their_way() -> None:
    """With one, the next step would be a small one or wait for the reader."""
    row = a_score(1, k=1024).wants.row_bytes(0)
    for tokens in (1024, 1536):
        assert part_credit(tokens) >= 2 * tokens * row


def test_the_plain_path_predicts_nothing() -> None:
    check_memory(a_score(64, k=VOCABULARY), None)


async def test_the_pool_refuses_it_and_counts_that() -> None:
    refused: list[Reason] = []

    class Observer(PoolObserver):
        def refused(self, reason: Reason) -> None:
            refused.append(reason)

    def prepare(executor: ScriptedExecutor) -> None:
        executor.info = replace(INFO, limits=worker(0))

    made = Scripted(1, Observer())
    made.prepare = prepare
    await made.start()
    with pytest.raises(ServiceError, match="ask for fewer"):
        async with made.pool.run(a_score(64, k=VOCABULARY)):
            pass
    assert refused == [Reason.OUT_OF_MEMORY]
    assert not made.workers[0].calls
    assert made.pool.queued_tokens == 0
    async with made.pool.run(replace(a_score(64, k=1024), call_id=2)):
        assert made.workers[0].calls
