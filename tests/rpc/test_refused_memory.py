"""A call that is refused leaves nothing behind that has to be collected."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Iterator
from contextlib import contextmanager

import grpc
import pytest

from scoring_client.proto import score_pb2
from scoring_service.pool.settings import PoolSettings
from scoring_service.rpc.handling.caller import Caller
from scoring_service.types import CompletionTask
from tests.pool.scripted import ScriptedExecutor
from tests.rpc.calls import failure, group, reason
from tests.rpc.conftest import run_server


@contextmanager
def uncollected() -> Iterator[None]:
    """Without the collector, which would find large calls late: they are old when they end."""
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


MARK = [41, 43, 47, 53, 59]
"""Ids that no other test has."""


def kept() -> tuple[int, int]:
    """Calls that are called "marked", and completions of these ids, that anything still holds."""
    things = gc.get_objects()
    calls = sum(type(t) is Caller and t.request_id == "marked" for t in things)
    tasks = sum(type(t) is CompletionTask and t.token_ids.tolist() == MARK for t in things)
    return calls, tasks


@pytest.mark.parametrize("read", [False, True])
async def test_what_is_refused_is_free_at_once(read: bool) -> None:
    """As a whole before it is read, or for want of room once it was."""
    settings = PoolSettings(max_queue_tokens=1 << 20, max_queue_reply_bytes=300)
    async with run_server(lambda _index: ScriptedExecutor(), settings) as server:
        first = server.stub.Score(score_pb2.ScoreRequest(groups=[group([1], *[[2, 3]] * 50)]))
        await first.read()
        second = score_pb2.ScoreRequest(groups=[group([1], *[MARK] * 50)])
        second.context.request_id = "marked"
        if not read:
            second.context.priority = 999
        with uncollected():
            code, status = await failure(server.stub.Score(second))
            refused = grpc.StatusCode.RESOURCE_EXHAUSTED
            assert code is (refused if read else grpc.StatusCode.INVALID_ARGUMENT)
            assert reason(status) == ("QUEUE_FULL" if read else "INVALID_FIELD")
            for _ in range(100):  # the handler ends a little after its caller was told
                if kept() == (0, 0):
                    break
                await asyncio.sleep(0.05)
            assert kept() == (0, 0)
        first.cancel()
