"""How many calls at once: on one connection, and on all."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from typing import Any

import grpc
from google.rpc import error_details_pb2, status_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from structlog.testing import capture_logs

from scoring_client.proto import (
    admin_pb2,
    admin_pb2_grpc,
    context_pb2,
    model_info_pb2,
    score_pb2,
    service_pb2_grpc,
)
from scoring_service.models import tiny_model_path
from scoring_service.pool.workers.readiness import PoolState
from scoring_service.rpc.admin.config import AdminConfig
from scoring_service.telemetry.metrics import Metrics
from scoring_service.telemetry.telemetry import Telemetry
from scoring_service.types import EngineConfig
from tests.pool.scripted import ScriptedExecutor
from tests.rpc.calls import failure, group, reason
from tests.rpc.conftest import RunningServer, run_server

# For a version that never comes: it waits and says so, and costs nothing.
WAITS = score_pb2.ScoreRequest(
    groups=[group([1], [2])], expect=context_pb2.Expect(min_weight_version=1 << 40)
)


async def held(stub: Any) -> Any:
    """A call that was begun and does not end by itself."""
    call = stub.Score(WAITS)
    await asyncio.wait_for(call.read(), 30)
    return call


def channel(server: RunningServer) -> grpc.aio.Channel:
    """A connection of its own."""
    options = [("grpc.use_local_subchannel_pool", 1)]
    return grpc.aio.insecure_channel(server.target, options=options)


async def test_a_ninth_call_on_a_connection_for_eight_begins_when_one_has_ended() -> None:
    options = {"max_concurrent_streams": 8, "progress_seconds": 0.05}
    async with run_server(lambda _index: ScriptedExecutor(), **options) as server:
        calls = [await held(server.stub) for _ in range(8)]
        ninth = server.stub.Score(WAITS)
        first = asyncio.ensure_future(ninth.read())
        done, _ = await asyncio.wait({first}, timeout=0.5)
        assert not done, "it was begun beside eight others"
        async with channel(server) as other:
            calls.append(await held(service_pb2_grpc.ScoringServiceStub(other)))
        calls[0].cancel()
        await asyncio.wait_for(first, 30)
        for call in (*calls, ninth):
            call.cancel()


def retry_delay(status: status_pb2.Status) -> float:
    """RetryInfo in seconds; 0 = there is none."""
    info = error_details_pb2.RetryInfo()
    for detail in status.details:
        if detail.Unpack(info):
            return info.retry_delay.ToNanoseconds() / 1e9
    return 0.0


async def test_calls_beyond_the_most_are_told_when_to_come_back() -> None:
    options = {"max_concurrent_calls": 3, "progress_seconds": 0.05}
    async with (
        run_server(lambda _index: ScriptedExecutor(), **options) as server,
        AsyncExitStack() as stack,
    ):
        stubs = []
        for _ in range(3):
            own = await stack.enter_async_context(channel(server))
            stubs.append(service_pb2_grpc.ScoringServiceStub(own))
        calls = [await held(stub) for stub in stubs]
        for refused in (
            server.stub.Score(WAITS),
            server.stub.GetModelInfo(model_info_pb2.GetModelInfoRequest()),
        ):
            code, status = await failure(refused)
            assert code is grpc.StatusCode.RESOURCE_EXHAUSTED
            assert reason(status) == "QUEUE_FULL"
            assert retry_delay(status) >= 0.1
            assert "at most 3" in status.message
        probe = await stack.enter_async_context(channel(server))
        health = health_pb2_grpc.HealthStub(probe)
        answer = await health.Check(health_pb2.HealthCheckRequest(), timeout=30)
        assert answer.status == health_pb2.HealthCheckResponse.SERVING, "probes are let in"
        calls.pop().cancel()
        for _ in range(100):  # the end of a call takes its time
            try:
                calls.append(await held(server.stub))
                break
            except grpc.aio.AioRpcError:
                await asyncio.sleep(0.05)
        assert len(calls) == 3
        for call in calls:
            call.cancel()


async def test_an_admin_is_let_in_beside_the_most_calls_and_the_refused_are_counted() -> None:
    metrics = Metrics()
    options = {
        "max_concurrent_calls": 1,
        "progress_seconds": 0.05,
        "admin": AdminConfig(engine=EngineConfig(model=str(tiny_model_path()))),
    }
    async with run_server(
        lambda _index: ScriptedExecutor(), telemetry=Telemetry(metrics), **options
    ) as server:
        call = await held(server.stub)
        with capture_logs() as logs:
            for _ in range(3):
                _, status = await failure(server.stub.Score(WAITS))
                assert reason(status) == "QUEUE_FULL"
        (line,) = [line for line in logs if line["event"] == "turned_away"]
        assert line["reason"] == "QUEUE_FULL"
        assert line["rpc"] == "/scoring.v1.ScoringService/Score"
        assert line["peer"] == "ipv4:127.0.0.1"
        refused = "scoring_requests_refused_total"
        assert metrics.registry.get_sample_value(refused, {"reason": "QUEUE_FULL"}) == 3
        async with channel(server) as own:
            admin = admin_pb2_grpc.AdminServiceStub(own)
            answer = await admin.GetWeights(admin_pb2.GetWeightsRequest(), timeout=30)
            assert answer.version == 1
            async for _ in admin.Drain(admin_pb2.DrainRequest()):
                break
        assert server.pool.state is PoolState.PAUSED
        call.cancel()
