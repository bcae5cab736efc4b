"""A call that its caller gave up ends in the worker too, and leaves nothing behind."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

import grpc
import pytest

from tests.e2e.calls import (
    SERVING,
    health,
    sample_request,
    score_request,
    scores,
    stub_of,
)
from tests.e2e.processes import idle, resident, until
from tests.e2e.served import Served


@pytest.fixture(scope="module", autouse=True)
def nothing_goes_wrong(server: Served) -> Iterator[None]:
    """Nor is said to, in this file."""
    said = len(server.err)
    yield
    lines = server.err[said:]
    assert not [line for line in lines if '"error"' in line or "Traceback" in line]


def long_score(stub: Any, timeout: float) -> Any:
    """Minutes of work with few results, so that it is not for want of a reader that it ends."""
    request = score_request([1], [2] * 4000, copies=600)
    for group in request.groups:
        group.completions[0].rows.add(start=3999, length=1)
    return stub.Score(request, timeout=timeout)


def long_sample(stub: Any, timeout: float) -> Any:
    """Minutes of work."""
    return stub.Sample(sample_request(4000, n=60), timeout=timeout)


LONG_CALLS = [long_score, long_sample]


def taken(start: Callable[..., Any], stub: Any) -> Any:
    """A call that a worker is at.

    Each takes half of the queue. Where the machine is busy, the one that was cancelled a moment ago
    may still be in it; so this one may be told to come back, but not for long.
    """
    for _ in range(100):
        call = start(stub, timeout=280)
        try:
            next(call)
        except grpc.RpcError as refused:
            assert refused.code() is grpc.StatusCode.RESOURCE_EXHAUSTED  # noqa: PT017
            time.sleep(0.05)
        else:
            return call
    raise AssertionError("what was cancelled is still in the queue")


@pytest.mark.parametrize("start", LONG_CALLS)
def test_a_cancelled_call_ends_its_work(server: Served, start: Callable[..., Any]) -> None:
    with stub_of(server.ready) as stub:
        call = start(stub, timeout=280)
        next(call)
        next(call)
        assert not idle(server.worker_pid)
        call.cancel()
        until(lambda: idle(server.worker_pid), patience=20)


@pytest.mark.parametrize("start", LONG_CALLS)
def test_a_deadline_ends_the_work(server: Served, start: Callable[..., Any]) -> None:
    with stub_of(server.ready) as stub:
        with pytest.raises(grpc.RpcError) as ended:
            list(start(stub, timeout=3))
        assert ended.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        until(lambda: idle(server.worker_pid), patience=20)


@pytest.mark.parametrize("start", LONG_CALLS)
def test_a_client_that_vanishes_ends_the_work(server: Served, start: Callable[..., Any]) -> None:
    with stub_of(server.ready) as stub:
        call = start(stub, timeout=280)
        next(call)
        next(call)
        assert not idle(server.worker_pid)
    until(lambda: idle(server.worker_pid), patience=20)


def test_fifty_cancelled_calls_leave_the_server_as_it_was(server: Served) -> None:
    worker = server.worker_pid
    pids = (server.process.pid, worker)
    with stub_of(server.ready) as stub:
        before = scores(stub)
        for number in range(50):
            if number == 10:
                held = sum(map(resident, pids))
            start = LONG_CALLS[number % 2]
            call = taken(start, stub) if number % 3 else start(stub, timeout=280)
            call.cancel()
        until(lambda: idle(worker), patience=60)
        assert sum(map(resident, pids)) - held < 100 << 20
        assert server.worker_pid == worker
        assert health(server.ready) == SERVING
        assert scores(stub) == before
