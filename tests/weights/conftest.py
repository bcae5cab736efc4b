"""Servers that take weights, and what tests ask of them."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import grpc
import pytest_asyncio

from scoring_client.proto import admin_pb2, admin_pb2_grpc, context_pb2, score_pb2
from scoring_service.models import tiny_model_path
from scoring_service.pool.pool import WorkerPool
from scoring_service.pool.settings import PoolSettings
from scoring_service.pool.workers.local import LocalExecutor
from scoring_service.rpc.admin.config import AdminConfig
from scoring_service.telemetry.metrics import Metrics
from scoring_service.telemetry.telemetry import Telemetry
from scoring_service.types import EngineConfig
from tests.rpc.calls import group, score_one
from tests.rpc.conftest import LIMITS, run_server
from tests.weights.trainer import State, messages

ENGINE = EngineConfig(
    model=str(tiny_model_path()), dtype="float32", memory_utilization=0.02, threads=1
)
PROGRESS_SECONDS = 0.5
"""In place of 15, after which a call that waits shows it."""


@dataclass(frozen=True)
class WeightServer:
    """A server that answers and takes weights."""

    target: str
    pool: WorkerPool
    scoring: Any
    admin: Any
    metrics: Metrics | None = None

    async def push(self, state: State, version: int, **options: Any) -> list[Any]:
        """Every status of an update."""
        call = self.admin.PushWeights(messages(state, version, **options))
        return [response.status async for response in call]

    async def weights(self, **fields: Any) -> admin_pb2.GetWeightsResponse:
        """Which weights answer."""
        return await self.admin.GetWeights(admin_pb2.GetWeightsRequest(**fields))

    async def score(
        self, prompt: list[int], completion: list[int], **fields: Any
    ) -> score_pb2.ScoreResult:
        """One completion's log-probs."""
        request = score_pb2.ScoreRequest(groups=[group(prompt, completion)], **fields)
        return await score_one(self.scoring, request)


@asynccontextmanager
async def weight_server(
    admin: AdminConfig | None = None, engine: EngineConfig = ENGINE
) -> AsyncIterator[WeightServer]:
    """A server in this process, its worker in a thread."""
    # A worker that shares its process, and its lock, with all else may be silent for long.
    settings = PoolSettings(max_queue_tokens=LIMITS.max_queue_tokens, heartbeat_timeout=300.0)
    admin = admin or AdminConfig(engine=engine)
    telemetry = Telemetry(Metrics())
    async with (
        run_server(
            lambda _index: LocalExecutor(engine),
            settings,
            telemetry,
            admin=admin,
            progress_seconds=PROGRESS_SECONDS,
        ) as running,
        grpc.aio.insecure_channel(running.target) as channel,
    ):
        stub = admin_pb2_grpc.AdminServiceStub(channel)
        telemetry.metrics.watch(running.pool)
        yield WeightServer(running.target, running.pool, running.stub, stub, telemetry.metrics)


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def served() -> AsyncIterator[WeightServer]:
    """One for tests that leave its weights as they were, or say what they are."""
    async with weight_server() as server:
        yield server


async def begin_to_wait(
    server: WeightServer, prompt: list[int], completion: list[int], expect: context_pb2.Expect
) -> AsyncIterator[Any]:
    """The answer to a call for weights to come, once it has shown that it waits for them."""
    request = score_pb2.ScoreRequest(groups=[group(prompt, completion)], expect=expect)
    call = server.scoring.Score(request, timeout=60)
    assert (await call.read()).HasField("progress")
    return the_rest(call)


async def the_rest(call: Any) -> AsyncIterator[Any]:
    """What comes after messages that were read one by one."""
    while (message := await call.read()) is not grpc.aio.EOF:
        yield message
