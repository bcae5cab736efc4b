"""However a push ends, whoever waits for it hears of it, and nothing is left running."""

import asyncio
import threading

import grpc
import numpy as np
import pytest

from scoring_client import (
    AdminClient,
    AsyncAdminClient,
    CancelledCallError,
    ProtocolError,
    ScoringError,
)
from scoring_client.proto import admin_pb2
from tests.client.toy_weights import WeightsServer

SPECS = {"w": ("float32", (4,), "")}
WEIGHTS = {"w": np.zeros(4, dtype=np.float32)}


class Unreadable(WeightsServer):
    """Says of a commit what cannot be read: details that are no message."""

    def _status(self, phase, version):
        response = super()._status(phase, version)
        if phase == "STAGING":
            detail = response.status.failure.details.add()
            detail.type_url = "type.googleapis.com/google.rpc.BadRequest"
            detail.value = b"\xff\xff"
        return response


def test_an_answer_that_cannot_be_read_ends_a_push(monkeypatch):
    unhandled = []
    monkeypatch.setattr(threading, "excepthook", unhandled.append)
    with Unreadable(SPECS) as server, AdminClient(server.target) as client:
        with pytest.raises(ProtocolError, match="breaks the contract: DecodeError") as raised:
            client.push_weights(WEIGHTS, version=1, timeout=20)
        assert type(raised.value.__cause__).__name__ == "DecodeError"
    assert not unhandled


def test_an_answer_that_cannot_be_read_ends_an_async_push(runner):
    async def push(target):
        async with AsyncAdminClient(target) as client:
            await client.push_weights(WEIGHTS, version=1, timeout=20)

    with (
        Unreadable(SPECS) as server,
        pytest.raises(ProtocolError, match="breaks the contract: DecodeError"),
    ):
        runner.run(push(server.target))


def own_tasks():
    """But for gRPC's own, which hear of a cancelled call a moment later."""
    return {task for task in asyncio.all_tasks() if "_AioCall" not in repr(task)}


def test_a_failed_async_push_leaves_no_task(runner):
    async def push(target):
        async with AsyncAdminClient(target) as client:
            before = own_tasks()
            with pytest.raises(ZeroDivisionError):
                await client.push_weights(WEIGHTS, version=1, on_progress=lambda _: 1 / 0)
            return own_tasks() - before

    with WeightsServer(SPECS, commit_slow=0.2) as server:
        assert runner.run(push(server.target)) == set()


def test_who_cancels_an_async_push_sees_it_cancelled(runner):
    async def push(target):
        async with AsyncAdminClient(target) as client:
            committing = asyncio.Event()

            def told(progress):
                if progress.phase == "staging":
                    committing.set()

            pushing = asyncio.create_task(client.push_weights(WEIGHTS, version=1, on_progress=told))
            await committing.wait()
            pushing.cancel()
            with pytest.raises(asyncio.CancelledError):
                await pushing

    with WeightsServer(SPECS, commit_slow=0.5) as server:
        runner.run(push(server.target))


def no_room(request, number):
    """The server refuses what follows the first message."""
    return (grpc.StatusCode.RESOURCE_EXHAUSTED, "OUT_OF_MEMORY", "no room") if number else None


class Silent(WeightsServer):
    """Once an update failed, it says nothing more of it."""

    def __init__(self, specs, **kw):
        super().__init__(specs, **kw)
        self.asked, self.go_on = threading.Event(), threading.Event()

    def __exit__(self, *error):
        self.go_on.set()
        super().__exit__(*error)

    def GetWeights(self, request, context):  # noqa: N802
        if self._last is None:
            return super().GetWeights(request, context)
        self.asked.set()
        self.go_on.wait(20)
        return admin_pb2.GetWeightsResponse()


@pytest.mark.parametrize("how", ["close", "cancel"])
def test_who_asks_why_a_push_failed_can_be_stopped(runner, how):
    async def push(server):
        client = AsyncAdminClient(server.target)
        pushing = asyncio.create_task(client.push_weights(WEIGHTS, version=1))
        await asyncio.to_thread(server.asked.wait, 20)
        if how == "cancel":
            pushing.cancel()
        else:
            await client.close()
        try:
            await pushing
        finally:
            assert own_tasks() == {asyncio.current_task()}
            await client.close()

    # A client that was closed cancels nobody.
    expected = ScoringError if how == "close" else asyncio.CancelledError
    with Silent(SPECS, fail=no_room, loses_status=True) as server, pytest.raises(expected):
        runner.run(push(server))


@pytest.mark.parametrize("other_update", [False, True])
def test_a_lost_status_is_asked_for_by_the_update_s_name(runner, other_update):
    async def push(target):
        async with AsyncAdminClient(target) as client:
            await client.push_weights(WEIGHTS, version=1)

    with (
        WeightsServer(SPECS, fail=no_room, loses_status=True, other_update=other_update) as server,
        pytest.raises(ScoringError) as caught,
    ):
        runner.run(push(server.target))
    # What became of somebody else's update is no answer.
    lost = (grpc.StatusCode.INTERNAL, "")
    told = (grpc.StatusCode.RESOURCE_EXHAUSTED, "OUT_OF_MEMORY")
    assert (caught.value.code, caught.value.reason) == (lost if other_update else told)


def test_closing_an_async_client_ends_its_push_and_cancels_nobody(runner):
    async def push(target):
        client, closing = AsyncAdminClient(target), []

        def close(progress):
            closing.append(asyncio.ensure_future(client.close()))

        try:
            await client.push_weights(WEIGHTS, version=1, on_progress=close)
        finally:
            await asyncio.gather(*closing)

    with (
        WeightsServer(SPECS, commit_slow=0.2) as server,
        pytest.raises(CancelledCallError, match="client was closed while it ran"),
    ):
        runner.run(push(server.target))
    assert server.version == 0
