"""Calls that wait: signs of life, priorities, openings that stay within a message."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import grpc
import pytest
import pytest_asyncio

from scoring_client.proto import (
    context_pb2,
    sample_pb2,
    score_pb2,
    sequence_pb2,
)
from scoring_service.models import tiny_model_path
from scoring_service.pool.workers.local import LocalExecutor
from scoring_service.rpc.server import ServerConfig
from scoring_service.types import EngineConfig
from tests.rpc.calls import collect, group
from tests.rpc.conftest import LIMITS, RunningServer, run_server

PROGRESS_SECONDS = 0.2


@pytest_asyncio.fixture(loop_scope="session")
async def impatient() -> AsyncIterator[RunningServer]:
    """A server that gives signs of life every 0.2 s, and where one call waits for another."""
    config = EngineConfig(model=str(tiny_model_path()), dtype="float32", path="plain")
    async with run_server(
        lambda _index: LocalExecutor(config), progress_seconds=PROGRESS_SECONDS
    ) as running:
        yield running


def long_sample(priority: int, max_tokens: int) -> sample_pb2.SampleRequest:
    """Keeps the worker busy: one greedy token of the packaged model takes over a millisecond."""
    return sample_pb2.SampleRequest(
        prompts=[sample_pb2.SamplePrompt(token_ids=[1, 2, 3])],
        sampling=sample_pb2.SamplingParams(max_tokens=max_tokens, ignore_eos=True),
        context=context_pb2.RequestContext(priority=priority),
    )


def test_signs_of_life_come_as_often_as_the_contract_says() -> None:
    assert ServerConfig("127.0.0.1", 0, LIMITS, 1.0).progress_seconds == 15.0


async def test_a_call_that_waits_says_how_many_tokens_are_ahead(impatient: RunningServer) -> None:
    first = impatient.stub.Sample(long_sample(priority=5, max_tokens=300))
    await first.read()
    waiting = score_pb2.ScoreRequest(groups=[group([1], [2, 3])])
    messages = await collect(impatient.stub.Score(waiting))
    first.cancel()
    signs = [message.progress for message in messages if message.HasField("progress")]
    assert signs, "the call waited behind one of higher priority without a sign of life"
    # The last may come as it begins to run.
    *waited, last = [sign.tokens_ahead for sign in signs]
    assert set(waited) <= {303}
    assert last == 303 or (waited and last == 0)
    assert messages[-1].summary.usage.queue_seconds > PROGRESS_SECONDS


async def test_higher_priority_runs_first(impatient: RunningServer) -> None:
    background = impatient.stub.Sample(long_sample(priority=-5, max_tokens=4000))
    await background.read()
    urgent = score_pb2.ScoreRequest(
        groups=[group([1], [2, 3])] * 20, context=context_pb2.RequestContext(priority=5)
    )
    messages = await collect(impatient.stub.Score(urgent))
    usage = messages[-1].summary.usage
    assert messages[-1].summary.items_ok == 20
    assert usage.queue_seconds < PROGRESS_SECONDS
    background.cancel()


async def test_a_version_to_come_is_waited_for_with_signs_of_life(
    impatient: RunningServer,
) -> None:
    request = score_pb2.ScoreRequest(groups=[group([1], [2])])
    request.expect.min_weight_version = 1
    call = impatient.stub.Score(request, timeout=5 * PROGRESS_SECONDS)
    seen: list[score_pb2.ScoreResponse] = []

    async def read_to_the_end() -> None:
        async for message in call:
            seen.append(message)

    with pytest.raises(grpc.aio.AioRpcError) as ended:
        await read_to_the_end()
    assert ended.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    assert len(seen) >= 2
    assert all(message.HasField("progress") for message in seen)
    assert not any(message.progress.HasField("tokens_ahead") for message in seen), "not queued yet"


async def test_many_faults_do_not_outgrow_a_message(server: RunningServer) -> None:
    bad = [sequence_pb2.Completion(token_ids=[99_999]) for _ in range(20_000)]
    prompt = sequence_pb2.TokenSequence(token_ids=[1])
    groups = [sequence_pb2.PromptGroup(prompt=prompt, completions=bad)]
    messages = await collect(server.stub.Score(score_pb2.ScoreRequest(groups=groups)))
    assert sum(message.ByteSize() for message in messages) > 4 << 20
    assert max(message.ByteSize() for message in messages) <= 1.1 * 2**20
    assert messages[-1].summary.items_failed == 20_000


async def test_a_cancelled_call_makes_room_for_the_next(server: RunningServer) -> None:
    calls = [server.stub.Sample(long_sample(priority=0, max_tokens=4000)) for _ in range(20)]
    for call in calls:
        await call.read()
        call.cancel()
    async with asyncio.timeout(20):
        messages = await collect(
            server.stub.Score(score_pb2.ScoreRequest(groups=[group([1], [2])]))
        )
    assert messages[-1].summary.items_ok == 1
    assert not server.pool.tokens_ahead(server.pool.new_call_id())
