"""What health says goes on following the pool, whatever is met on the way."""

from __future__ import annotations

import asyncio

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc
from structlog.testing import capture_logs

from scoring_service.pool.pool import WorkerPool
from scoring_service.pool.settings import PoolSettings
from scoring_service.rpc.admin.config import AdminConfig
from scoring_service.rpc.server import Server, ServerConfig
from scoring_service.types import EngineConfig
from tests.pool.scripted import ScriptedExecutor
from tests.rpc.conftest import LIMITS

SERVING = health_pb2.HealthCheckResponse.SERVING


class FailsOnce(WorkerPool):
    """A pool that has a bug where it is asked for the first time."""

    asked = False

    @property
    def takes_updates(self) -> bool:
        if not self.asked:
            self.asked = True
            raise RuntimeError("a bug")
        return super().takes_updates


async def test_health_follows_the_pool_after_a_bug() -> None:
    pool = FailsOnce(lambda _index: ScriptedExecutor(), PoolSettings(max_queue_tokens=1), "bug")
    admin = AdminConfig(engine=EngineConfig(model="none"))
    server = Server(ServerConfig("127.0.0.1", 0, LIMITS, 1.0, admin=admin), pool)
    with capture_logs() as lines:
        await server.start()
        try:
            async with (
                grpc.aio.insecure_channel(f"127.0.0.1:{server.port}") as channel,
                asyncio.timeout(20),
            ):
                request = health_pb2.HealthCheckRequest(service="scoring.v1.AdminService")
                async for told in health_pb2_grpc.HealthStub(channel).Watch(request):
                    if told.status == SERVING:
                        break
        finally:
            await server.drain()
    assert pool.asked
    failed = [line["task"] for line in lines if line["event"] == "background_task_failed"]
    assert failed == ["health"]
