"""The caller's deadline on its way to the engine."""

from __future__ import annotations

import math
import time
from collections.abc import AsyncIterator

import pytest_asyncio

from scoring_client.proto import score_pb2
from scoring_service.engine.events import Command, Submit
from scoring_service.models import tiny_model_path
from scoring_service.pool.workers.local import LocalExecutor
from scoring_service.types import Call, EngineConfig
from tests.rpc.calls import collect, group
from tests.rpc.conftest import RunningServer, run_server


class RecordingExecutor(LocalExecutor):
    """Keeps what it was given."""

    submitted: list[Call]

    def send(self, command: Command) -> None:
        if isinstance(command, Submit):
            self.submitted.append(command.call)
        super().send(command)


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def recorded() -> AsyncIterator[tuple[RunningServer, list[Call]]]:
    submitted: list[Call] = []

    def make(_index: int) -> LocalExecutor:
        executor = RecordingExecutor(EngineConfig(model=str(tiny_model_path())))
        executor.submitted = submitted
        return executor

    async with run_server(make) as running:
        yield running, submitted


async def test_the_engine_knows_until_when_the_caller_waits(
    recorded: tuple[RunningServer, list[Call]],
) -> None:
    server, submitted = recorded
    request = score_pb2.ScoreRequest(groups=[group([1], [2, 3])])
    before = time.monotonic()
    await collect(server.stub.Score(request, timeout=30))
    after = time.monotonic()
    assert before + 29 < submitted[-1].deadline < after + 30


async def test_without_a_timeout_there_is_no_deadline(
    recorded: tuple[RunningServer, list[Call]],
) -> None:
    server, submitted = recorded
    await collect(server.stub.Score(score_pb2.ScoreRequest(groups=[group([1], [2, 3])])))
    assert submitted[-1].deadline == math.inf
