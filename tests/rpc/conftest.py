"""A real server in this process: the packaged model in float32, gRPC over loopback."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import grpc
import pytest
import pytest_asyncio
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from scoring_client.proto import service_pb2_grpc
from scoring_service.models import tiny_model_path
from scoring_service.pool.pool import WorkerPool
from scoring_service.pool.settings import PoolSettings
from scoring_service.pool.workers.executor import Executor
from scoring_service.pool.workers.local import LocalExecutor
from scoring_service.rpc.models import RequestLimits
from scoring_service.rpc.server import Server, ServerConfig
from scoring_service.telemetry.telemetry import Telemetry
from scoring_service.types import EngineConfig

LIMITS = RequestLimits(
    max_request_bytes=4 << 20, max_queue_tokens=1 << 20, preferred_tokens_per_call=65_536
)


@dataclass(frozen=True)
class RunningServer:
    """A server that answers."""

    target: str
    pool: WorkerPool
    stub: Any
    """Async stub over a channel with gRPC's own default options."""
    health_port: int | None = None


@asynccontextmanager
async def run_server(
    make_executor: Callable[[int], Executor],
    settings: PoolSettings | None = None,
    telemetry: Telemetry | None = None,
    **options: Any,
) -> AsyncIterator[RunningServer]:
    """A server of its own, called "tiny", on loopback."""
    settings = settings or PoolSettings(max_queue_tokens=LIMITS.max_queue_tokens)
    telemetry = telemetry or Telemetry()
    pool = WorkerPool(make_executor, settings, "tiny", telemetry.metrics)
    config = ServerConfig("127.0.0.1", 0, LIMITS, drain_seconds=5.0, **options)
    running = Server(config, pool, telemetry)
    await running.start()
    try:
        assert await running.wait_ready(), pool.failure
        target = f"127.0.0.1:{running.port}"
        async with grpc.aio.insecure_channel(target) as channel:
            stub = service_pb2_grpc.ScoringServiceStub(channel)
            yield RunningServer(target, pool, stub, running.health_port)
    finally:
        await running.drain()


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def server() -> AsyncIterator[RunningServer]:
    """Serves the packaged model as "tiny"."""
    config = EngineConfig(model=str(tiny_model_path()), dtype="float32", weight_version=7)
    async with run_server(lambda _index: LocalExecutor(config)) as running:
        yield running


class PlainModel:
    """The packaged model through plain transformers, in float32: the independent reference."""

    def __init__(self) -> None:
        path = str(tiny_model_path())
        self.tokenizer = AutoTokenizer.from_pretrained(path)
        self.network = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()

    def logits(self, prompt: list[int], completion: list[int]) -> torch.Tensor:
        """float64 [n + 1, V]: row i predicts the completion's token i; the last one, the next."""
        with torch.inference_mode():
            logits = self.network(input_ids=torch.tensor([prompt + completion])).logits[0]
        return logits[len(prompt) - 1 :].double()


@pytest.fixture(scope="session")
def plain() -> PlainModel:
    """Plain transformers."""
    return PlainModel()
