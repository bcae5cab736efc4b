"""Calls that begin and send no request."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.rpc import status_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from scoring_client.proto import model_info_pb2, score_pb2
from scoring_service.telemetry.metrics import Metrics
from scoring_service.telemetry.telemetry import Telemetry
from tests.pool.scripted import ScriptedExecutor
from tests.rpc.calls import failure, reason
from tests.rpc.conftest import RunningServer, run_server

SERVING = health_pb2.HealthCheckResponse.SERVING
METHODS = ("Score", "GetModelInfo")


def half_open(channel: grpc.aio.Channel, method: str) -> Any:
    """A call of any method without its request: to gRPC on the wire all kinds are one."""
    return channel.stream_stream(method)()


async def ending(call: Any) -> tuple[grpc.StatusCode, str]:
    """Status and reason of a call that has to end by itself."""
    code = await asyncio.wait_for(call.code(), 20)
    metadata = dict(await call.trailing_metadata())
    return code, reason(status_pb2.Status.FromString(metadata["grpc-status-details-bin"]))


async def answered(watch: Any) -> bool:
    """Whether a watch was let in."""
    try:
        return bool((await watch.read()).status == SERVING)
    except grpc.aio.AioRpcError:
        return False


async def watch_that_is_in(health: health_pb2_grpc.HealthStub) -> Any:
    """A watch, once there is a place for it: the end of a call takes its time."""
    for _ in range(100):
        watch = health.Watch(health_pb2.HealthCheckRequest())
        if await answered(watch):
            return watch
        await asyncio.sleep(0.05)
    pytest.fail("no place became free")


@pytest.fixture
def tokens(tmp_path: Path) -> Path:
    path = tmp_path / "tokens"
    path.write_text(f"trainer score {'g' * 20}\n")
    return path


def connection(server: RunningServer) -> grpc.aio.Channel:
    options = [("grpc.use_local_subchannel_pool", 1)]
    return grpc.aio.insecure_channel(server.target, options=options)


@pytest.mark.parametrize("method", METHODS)
async def test_who_has_no_token_is_refused_without_a_request(tokens: Path, method: str) -> None:
    metrics = Metrics()
    async with (
        run_server(
            lambda _index: ScriptedExecutor(), telemetry=Telemetry(metrics), tokens=tokens
        ) as server,
        connection(server) as channel,
    ):
        call = half_open(channel, f"/scoring.v1.ScoringService/{method}")
        assert await ending(call) == (grpc.StatusCode.UNAUTHENTICATED, "UNAUTHENTICATED")
    labels = {
        "grpc_type": "server_stream" if method == "Score" else "unary",
        "grpc_service": "scoring.v1.ScoringService",
        "grpc_method": method,
        "grpc_code": "UNAUTHENTICATED",
    }
    assert metrics.registry.get_sample_value("grpc_server_handled_total", labels) == 1


async def test_requests_that_cross_their_refusal_do_not_change_it(tokens: Path) -> None:
    """Of any size: a large one is on its way still when the server has said no."""
    async with run_server(lambda _index: ScriptedExecutor(), tokens=tokens) as server:
        for size in (0, 100, 100_000, 3_000_000) * 5:
            request = score_pb2.ScoreRequest(model="m" * size)
            code, status = await failure(server.stub.Score(request))
            assert (code, reason(status)) == (grpc.StatusCode.UNAUTHENTICATED, "UNAUTHENTICATED")
            info = model_info_pb2.GetModelInfoRequest(model="m" * size)
            code, status = await failure(server.stub.GetModelInfo(info))
            assert (code, reason(status)) == (grpc.StatusCode.UNAUTHENTICATED, "UNAUTHENTICATED")


@pytest.mark.parametrize(
    "method",
    [
        *(f"/scoring.v1.ScoringService/{method}" for method in METHODS),
        "/grpc.health.v1.Health/Check",
    ],
)
async def test_a_request_that_does_not_come_is_not_waited_for_without_end(method: str) -> None:
    options = {"first_message_seconds": 0.3}
    async with (
        run_server(lambda _index: ScriptedExecutor(), **options) as server,
        connection(server) as channel,
    ):
        call = half_open(channel, method)
        assert await ending(call) == (grpc.StatusCode.DEADLINE_EXCEEDED, "DEADLINE_EXCEEDED")
        call = half_open(channel, method)
        await call.done_writing()
        assert await ending(call) == (grpc.StatusCode.INVALID_ARGUMENT, "INVALID_FIELD")
        listed = await server.stub.ListModels(model_info_pb2.ListModelsRequest())
        assert [model.name for model in listed.models] == ["tiny"]


async def test_reflection_on_the_plain_port_takes_places_of_probes() -> None:
    """A stream of it lasts as long as its caller likes, and nobody there is asked for a token."""
    async with (
        run_server(lambda _index: ScriptedExecutor(), max_probes=8, health_port=0) as server,
        grpc.aio.insecure_channel(f"127.0.0.1:{server.health_port}") as plain,
    ):
        listing = reflection_pb2.ServerReflectionRequest(list_services="")
        stub = reflection_pb2_grpc.ServerReflectionStub(plain)
        streams = [stub.ServerReflectionInfo() for _ in range(4)]
        for stream in streams:
            await stream.write(listing)
            listed = (await stream.read()).list_services_response.service
            assert "grpc.health.v1.Health" in {service.name for service in listed}
        refused = stub.ServerReflectionInfo()
        assert await ending(refused) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "QUEUE_FULL")
        health = health_pb2_grpc.HealthStub(plain)
        request = health_pb2.HealthCheckRequest()
        assert not await answered(health.Watch(request)), "they are the same places"
        streams.pop().cancel()
        watch = await watch_that_is_in(health)
        for call in (*streams, watch):
            call.cancel()


async def test_the_plain_port_has_the_limits_of_connections_too() -> None:
    options = {"max_concurrent_streams": 1, "health_port": 0}
    async with (
        run_server(lambda _index: ScriptedExecutor(), **options) as server,
        grpc.aio.insecure_channel(f"127.0.0.1:{server.health_port}") as plain,
    ):
        health = health_pb2_grpc.HealthStub(plain)
        first = health.Watch(health_pb2.HealthCheckRequest())
        assert await answered(first)
        second = health.Watch(health_pb2.HealthCheckRequest())
        reading = asyncio.ensure_future(second.read())
        done, _ = await asyncio.wait({reading}, timeout=0.5)
        assert not done, "it was begun beside another one"
        first.cancel()
        assert (await asyncio.wait_for(reading, 20)).status == SERVING
        second.cancel()
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await health.Check(health_pb2.HealthCheckRequest(service="s" * 100_000))
        assert refused.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED


async def test_one_host_has_half_of_the_places_for_probes() -> None:
    async with (
        run_server(lambda _index: ScriptedExecutor(), max_probes=4, health_port=0) as server,
        connection(server) as channel,
        grpc.aio.insecure_channel(f"127.0.0.1:{server.health_port}") as plain,
    ):
        health = health_pb2_grpc.HealthStub(channel)
        request = health_pb2.HealthCheckRequest()
        watch = health.Watch(request)
        assert (await watch.read()).status == SERVING
        silent = half_open(channel, "/grpc.health.v1.Health/Check")
        await silent.wait_for_connection()
        for _ in range(100):  # it takes its place a moment after the connection is there
            third = health.Watch(request)
            if not await answered(third):
                break
            third.cancel()
            await asyncio.sleep(0.05)
            if silent.done():  # it came while that watch had the place
                silent = half_open(channel, "/grpc.health.v1.Health/Check")
                await silent.wait_for_connection()
        assert await ending(third) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "QUEUE_FULL")
        listed = await server.stub.ListModels(model_info_pb2.ListModelsRequest())
        assert [model.name for model in listed.models] == ["tiny"]
        # The plain port has places of its own.
        beside = health_pb2_grpc.HealthStub(plain)
        watches = [beside.Watch(request) for _ in range(2)]
        assert [await answered(watch) for watch in watches] == [True, True]
        refused = beside.Watch(request)
        assert await ending(refused) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "QUEUE_FULL")
        watch.cancel()
        again = await watch_that_is_in(health)
        for call in (again, silent, *watches):
            call.cancel()
