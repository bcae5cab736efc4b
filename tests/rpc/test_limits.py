"""How many calls at once: on one connection, and on all."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from typing import Any

import grpc
import pytest
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
from scoring_service.rpc.interceptors.concurrency_limit import ConcurrencyLimitInterceptor
from scoring_service.telemetry.metrics import Metrics
from scoring_service.telemetry.telemetry import Telemetry
from scoring_service.types import EngineConfig
from tests.pool.scripted import ScriptedExecutor
from tests.rpc.calls import collect, failure, group, reason
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


class Timed(service_pb2_grpc.ScoringServiceServicer):
    """Calls that take as long as their model's name says, by a clock of the test's own."""

    def __init__(self) -> None:
        self.now = 0.0
        self.held = 0
        self.freed = asyncio.Event()

    async def Score(self, request: score_pb2.ScoreRequest, context: Any) -> Any:  # noqa: N802
        if request.model == "refused":
            self.now += 0.003
            await context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "the queue is full")
        if request.model == "held":
            self.held += 1
            await self.freed.wait()
        else:
            self.now += float(request.model)
        yield score_pb2.ScoreResponse()

    async def GetModelInfo(self, request: Any, context: Any) -> Any:  # noqa: N802
        self.now += 0.001
        return model_info_pb2.GetModelInfoResponse()


async def test_the_time_to_come_back_is_that_of_calls_which_are_answered() -> None:
    timed = Timed()
    limit = ConcurrencyLimitInterceptor(8, lambda _reason: None, clock=lambda: timed.now)
    server = grpc.aio.server(interceptors=[limit])
    service_pb2_grpc.add_ScoringServiceServicer_to_server(timed, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()

    async def told(stub: Any) -> float:
        """What a ninth call is told beside eight."""
        calls = [stub.Score(score_pb2.ScoreRequest(model="held")) for _ in range(8)]
        reading = [asyncio.ensure_future(call.read()) for call in calls]
        for _ in range(1000):
            if timed.held == 8:
                break
            await asyncio.sleep(0.01)
        timed.now += 40.0
        _, status = await failure(stub.Score(score_pb2.ScoreRequest(model="1")))
        timed.freed.set()
        await asyncio.gather(*reading)
        for call in calls:
            call.cancel()
        timed.held = 0
        timed.freed.clear()
        return retry_delay(status)

    try:
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as own:
            stub = service_pb2_grpc.ScoringServiceStub(own)
            assert await told(stub) == pytest.approx(40 / 8), "nobody knows more yet"
            await wait_idle(limit)
            for _ in range(60):
                await collect(stub.Score(score_pb2.ScoreRequest(model="60")))
            for _ in range(100):
                await failure(stub.Score(score_pb2.ScoreRequest(model="refused")))
                await stub.GetModelInfo(model_info_pb2.GetModelInfoRequest())
            assert await told(stub) == pytest.approx(60 / 8, rel=0.01)
    finally:
        await server.stop(None)


async def wait_idle(limit: ConcurrencyLimitInterceptor) -> None:
    for _ in range(1000):
        if not limit.running:
            return
        await asyncio.sleep(0.01)
    raise AssertionError("calls do not end")


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
