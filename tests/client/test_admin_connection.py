"""Calls that wait for new weights do not keep out the push that brings them."""

import asyncio
import threading
import time
from collections.abc import Iterator
from concurrent import futures
from contextlib import contextmanager

import grpc
import pytest

from scoring_client import AdminClient, AsyncAdminClient, AsyncScoringClient, ScoringClient
from scoring_client.proto import admin_pb2_grpc, service_pb2_grpc
from tests.client.pushes import SPECS
from tests.client.toy_server import ToyServer
from tests.client.toy_weights import WeightsServer

MOST_CALLS = 2
"""On one connection."""
ONE = [([1, 2], [[3, 4]])]


@contextmanager
def served(scoring: ToyServer, weights: WeightsServer) -> Iterator[str]:
    """Both services behind one port, as a server has them."""
    options = [("grpc.max_concurrent_streams", MOST_CALLS), ("grpc.so_reuseport", 0)]
    server = grpc.server(futures.ThreadPoolExecutor(8), options=options)
    service_pb2_grpc.add_ScoringServiceServicer_to_server(scoring, server)
    admin_pb2_grpc.add_AdminServiceServicer_to_server(weights, server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        server.stop(grace=0).wait()


@pytest.mark.parametrize("kind", ["sync", "async"])
def test_as_many_calls_as_a_connection_takes_leave_room_for_an_admin(kind, runner):
    scoring = ToyServer(hold=threading.Event())
    with served(scoring, WeightsServer(SPECS, version=7)) as target:
        if kind == "sync":
            blocked_by_threads(target, scoring)
        else:
            runner.run(blocked_by_tasks(target, scoring))


def blocked_by_threads(target: str, scoring: ToyServer) -> None:
    with (
        ScoringClient(target) as client,
        AdminClient(target, timeout=5) as admin,
        futures.ThreadPoolExecutor(MOST_CALLS) as pool,
    ):
        client.wait_ready()  # from here on gRPC knows how many calls the connection takes
        asked = [pool.submit(client.score, ONE) for _ in range(MOST_CALLS)]
        try:
            while len(scoring.requests) < MOST_CALLS:
                time.sleep(0.01)
            assert admin.get_weights().version == 7
            assert not any(call.done() for call in asked)
        finally:
            scoring.hold.set()
        assert [len(call.result()) for call in asked] == [1] * MOST_CALLS


async def blocked_by_tasks(target: str, scoring: ToyServer) -> None:
    async with AsyncScoringClient(target) as client, AsyncAdminClient(target, timeout=5) as admin:
        await client.wait_ready()
        asked = [asyncio.create_task(client.score(ONE)) for _ in range(MOST_CALLS)]
        try:
            while len(scoring.requests) < MOST_CALLS:  # noqa: ASYNC110 - filled by threads
                await asyncio.sleep(0.01)
            assert (await admin.get_weights()).version == 7
            assert not any(call.done() for call in asked)
        finally:
            scoring.hold.set()
        assert [len(found) for found in await asyncio.gather(*asked)] == [1] * MOST_CALLS
