"""A server that answers nobody until it was given weights."""

from __future__ import annotations

import asyncio
import dataclasses

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from scoring_client import AdminClient, AsyncAdminClient, AsyncScoringClient, ScoringError
from scoring_client.proto import (
    admin_pb2,
    admin_pb2_grpc,
    context_pb2,
    model_info_pb2,
    score_pb2,
    service_pb2_grpc,
)
from scoring_service.config import ServeConfig
from scoring_service.errors import ConfigurationError
from scoring_service.pool.pool import WorkerPool
from scoring_service.pool.settings import PoolSettings
from scoring_service.pool.workers.local import LocalExecutor
from scoring_service.pool.workers.readiness import PoolState
from scoring_service.rpc.admin.servicer import AdminConfig
from scoring_service.rpc.server import Server, ServerConfig
from scoring_service.serving.settings import admin_config
from scoring_service.telemetry.metrics import Metrics
from tests.rpc.calls import failure, group, reason
from tests.rpc.conftest import LIMITS
from tests.weights.conftest import ENGINE, PROGRESS_SECONDS, WeightServer, begin_to_wait
from tests.weights.trainer import Trainer

NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING
SERVING = health_pb2.HealthCheckResponse.SERVING
FIRST = context_pb2.Expect(min_weight_version=1)
ADMIN, SCORING = "scoring.v1.AdminService", "scoring.v1.ScoringService"


async def health(channel: grpc.aio.Channel, service: str) -> int:
    request = health_pb2.HealthCheckRequest(service=service)
    return (await health_pb2_grpc.HealthStub(channel).Check(request)).status


async def told_to_serve(channel: grpc.aio.Channel, service: str) -> None:
    """Waits until health says so."""
    request = health_pb2.HealthCheckRequest(service=service)
    watch = health_pb2_grpc.HealthStub(channel).Watch(request)
    while (await watch.read()).status != SERVING:
        pass
    watch.cancel()


async def test_calls_are_taken_once_weights_were_committed() -> None:
    settings = PoolSettings(max_queue_tokens=LIMITS.max_queue_tokens, await_weights=True)
    pool = WorkerPool(lambda _index: LocalExecutor(ENGINE), settings, "tiny")
    metrics = Metrics()
    metrics.watch(pool)

    def shown(name: str) -> float:
        return sum(
            sample.value
            for family in metrics.registry.collect()
            for sample in family.samples
            if sample.name == name
        )

    admin_config = AdminConfig(engine=ENGINE)
    config = ServerConfig(
        "127.0.0.1", 0, LIMITS, 5.0, admin=admin_config, progress_seconds=PROGRESS_SECONDS
    )
    running = Server(config, pool)
    await running.start()
    target = f"127.0.0.1:{running.port}"
    ready = asyncio.create_task(running.wait_ready())
    try:
        async with grpc.aio.insecure_channel(target) as channel, AsyncAdminClient(target) as admin:
            before = await admin.takes_updates()
            assert not (before and pool.state is PoolState.LOADING)
            while pool.state is PoolState.LOADING:
                await pool.wait_changed()
            assert pool.state is PoolState.AWAITING_WEIGHTS, pool.stage
            await told_to_serve(channel, ADMIN)  # which comes last
            assert await health(channel, SCORING) == NOT_SERVING
            # Its worker answers; whoever is alarmed by that alone would hear nothing.
            assert (shown("scoring_ready"), shown("scoring_worker_ready")) == (0, 1)
            assert await admin.takes_updates()
            server = WeightServer(
                target,
                pool,
                service_pb2_grpc.ScoringServiceStub(channel),
                admin_pb2_grpc.AdminServiceStub(channel),
            )
            await check_refused(server)
            # A failed update leaves it as it was.
            with pytest.raises(grpc.RpcError):
                await server.push({}, 1)
            await check_refused(server)
            assert not ready.done()
            waiting, scorer = (
                await begin_to_wait(server, [5, 6], [7, 8], FIRST),
                AsyncScoringClient(target),
            )
            coming = asyncio.create_task(scorer.wait_for_version(1, timeout=60))
            trainer = Trainer()
            trainer.step()
            await server.push(trainer.states[1], 1)
            assert await ready
            await told_to_serve(channel, SCORING)
            assert (await server.score([5, 6], [7, 8])).weight_version == 1
            results = [result async for message in waiting for result in message.results]
            assert [result.weight_version for result in results] == [1]
            assert (await coming).weight_version == 1
            await scorer.close()
            await asyncio.to_thread(check_blocking_client, target)
    finally:
        await running.drain()
    async with AsyncAdminClient(target) as admin:
        assert not await admin.takes_updates()


def check_blocking_client(target: str) -> None:
    with AdminClient(target) as admin:
        assert admin.takes_updates()


async def check_refused(server: WeightServer) -> None:
    """Every call that would be answered from the weights of the start; one that waits, in time."""
    request = score_pb2.ScoreRequest(groups=[group([5, 6], [7])])
    code, status = await failure(server.scoring.Score(request, timeout=20))
    assert (code, reason(status)) == (grpc.StatusCode.UNAVAILABLE, "AWAITING_WEIGHTS")
    # Version 0 too: what was loaded is called so, and is not to be answered from.
    for version in (0, 1):
        request.expect.min_weight_version = version
        code, status = await failure(server.scoring.Score(request, timeout=0.5))
        assert code is grpc.StatusCode.DEADLINE_EXCEEDED
        assert f"version >= {version}; the server was given none yet" in status.message
    with pytest.raises(grpc.aio.AioRpcError, match="waits for weights"):
        await server.scoring.GetModelInfo(model_info_pb2.GetModelInfoRequest())
    assert (await server.admin.GetWeights(admin_pb2.GetWeightsRequest())).version == 0


async def test_where_there_is_no_admin_service() -> None:
    pool = WorkerPool(lambda _index: LocalExecutor(ENGINE), PoolSettings(max_queue_tokens=1), "t")
    running = Server(ServerConfig("127.0.0.1", 0, LIMITS, 1.0), pool)
    await running.start()
    try:
        async with AsyncAdminClient(f"127.0.0.1:{running.port}") as admin:
            with pytest.raises(ScoringError, match="lets nobody change its weights"):
                await admin.takes_updates()
        # A thread cannot be ended, and transformers' loading is for one at a time.
        assert await running.wait_ready()
    finally:
        await running.drain()


def test_weights_that_nobody_may_push_are_not_waited_for() -> None:
    waiting = ServeConfig(host="0.0.0.0", allow_insecure=True, await_weights=True)
    with pytest.raises(ConfigurationError, match="nobody could push"):
        admin_config(waiting, ENGINE)
    assert admin_config(dataclasses.replace(waiting, allow_admin=True), ENGINE) is not None
