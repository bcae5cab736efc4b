"""A server that ends although one of its workers cannot be ended."""

from __future__ import annotations

from dataclasses import replace

import grpc
import pytest

from scoring_client.proto import model_info_pb2, service_pb2_grpc
from scoring_service.errors import Reason
from scoring_service.pool.pool import WorkerPool
from scoring_service.pool.settings import PoolSettings
from scoring_service.pool.weights.status import UpdateOptions
from scoring_service.rpc.server import Server, ServerConfig
from scoring_service.types import TensorSpec
from tests.pool.scripted import INFO, ScriptedExecutor
from tests.rpc.conftest import LIMITS


class Stopped(ScriptedExecutor):
    """Keeps whether it was told to stop."""

    stopped = False

    def stop(self, timeout: float) -> None:
        self.stopped = True


class Withstanding(Stopped):
    """As a process whose signals the system refuses."""

    def stop(self, timeout: float) -> None:
        super().stop(timeout)
        raise PermissionError("not permitted")


async def test_a_worker_that_cannot_be_stopped_keeps_nothing_else_up() -> None:
    info = replace(INFO, tensors=(TensorSpec("w", "float32", (2,)),))
    workers = [Withstanding(info), Stopped(info)]
    settings = PoolSettings(max_queue_tokens=LIMITS.max_queue_tokens, workers=2)
    pool = WorkerPool(workers.__getitem__, settings, "scripted")
    server = Server(ServerConfig("127.0.0.1", 0, LIMITS, drain_seconds=5.0), pool)
    await server.start()
    try:
        assert await server.wait_ready()
        update = pool.weights.begin(UpdateOptions(2), "")
        with pytest.raises(PermissionError):
            await server.drain()
        assert [worker.stopped for worker in workers] == [True, True]
        assert update.fault is not None
        assert update.fault.reason is Reason.DRAINING
        async with grpc.aio.insecure_channel(f"127.0.0.1:{server.port}") as channel:
            stub = service_pb2_grpc.ScoringServiceStub(channel)
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await stub.ListModels(model_info_pb2.ListModelsRequest(), timeout=10)
        assert refused.value.code() is grpc.StatusCode.UNAVAILABLE
    finally:
        await server.drain()  # of workers that are gone, which ends whatever was left
