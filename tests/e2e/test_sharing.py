"""Callers beside one another: nobody waits for a long call, and a full queue says so."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import grpc
import pytest

from tests.e2e.calls import (
    reason_of,
    retry_delay_of,
    sample_request,
    score_request,
    scores,
    stub_of,
)
from tests.e2e.processes import frozen, until
from tests.e2e.served import Served, serving

QUEUE_TOKENS = 6000


@pytest.fixture(scope="module")
def narrow() -> Iterator[Served]:
    """One server with a small queue; a call larger than it is let in when nothing else waits."""
    with serving("--max-queue-tokens", str(QUEUE_TOKENS)) as running:
        assert running.ready
        yield running


@pytest.mark.parametrize("kind", ["score", "sample"])
def test_a_short_call_does_not_wait_for_a_long_one(server: Served, kind: str) -> None:
    with stub_of(server.ready) as stub, stub_of(server.ready) as other:
        long_call = (
            stub.Score(score_request([1, 2], [3] * 500, copies=2000), timeout=280)
            if kind == "score"
            else stub.Sample(sample_request(500, n=200), timeout=280)
        )
        answered: list[int] = []

        def read() -> None:
            try:
                for message in long_call:
                    answered.extend(len(result.logprobs) for result in message.results)
            except grpc.RpcError:
                return

        reader = threading.Thread(target=read)
        reader.start()
        until(lambda: bool(answered))
        for _ in range(3):
            assert scores(other)
        done = sum(answered)
        long_call.cancel()
        reader.join()
        assert done < (2000 if kind == "score" else 200) * 500 / 4


def test_a_full_queue_refuses_at_once_and_says_when_to_return(narrow: Served) -> None:
    large = score_request([1], [2] * 999, copies=5)
    with stub_of(narrow.ready) as stub, stub_of(narrow.ready) as other:
        with frozen(narrow.worker_pid):
            first = stub.Score(large, timeout=120)
            next(first)
            # Nothing waits for the worker: it stands still.
            with pytest.raises(grpc.RpcError) as refused:
                list(other.Score(large, timeout=60))
            assert refused.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
            assert reason_of(refused.value) == "QUEUE_FULL"
            delay = retry_delay_of(refused.value)
            assert delay is not None
            assert 0 < delay < 3600
            small = other.Score(score_request([1], [2] * 99), timeout=120)
            next(small)
        assert list(first)[-1].summary.items_ok == 5
        assert list(small)[-1].summary.items_ok == 1
        assert list(other.Score(large, timeout=120))[-1].summary.items_ok == 5


def test_cancelled_calls_make_room_in_the_queue(narrow: Served) -> None:
    large = score_request([1], [2] * 999, copies=5)
    with stub_of(narrow.ready) as stub:
        for _ in range(5):
            call = stub.Score(large, timeout=120)
            next(call)
            call.cancel()
            until(lambda: fits(stub, QUEUE_TOKENS - 1000))


def fits(stub: Any, tokens: int) -> bool:
    """Whether a call of so many tokens is let in."""
    call = stub.Score(score_request([1], [2] * (tokens // 2 - 1), copies=2), timeout=120)
    try:
        return list(call)[-1].summary.items_ok == 2
    except grpc.RpcError as error:
        if reason_of(error) != "QUEUE_FULL":
            raise
        return False
