"""How a server ends: idle, busy, too slow, asked twice, killed."""

from __future__ import annotations

import json
import signal
import time

import grpc
import pytest

from tests.e2e.calls import (
    NOT_SERVING,
    SERVING,
    health,
    reason_of,
    sample_request,
    score_request,
    stub_of,
    top_k_request,
)
from tests.e2e.processes import alive, frozen, idle, until
from tests.e2e.served import serving


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
def test_an_idle_server_ends_with_0_and_leaves_no_worker(signum: int) -> None:
    with serving() as server:
        assert server.ready
        worker = server.worker_pid
        assert server.end(signum) == 0
        assert not alive(worker)
        assert '"stopped"' in server.err[-1]


def test_a_drain_lets_running_calls_end_and_refuses_new_ones() -> None:
    with serving("--drain-seconds", "100") as server, stub_of(server.ready) as stub:
        sample = stub.Sample(sample_request(200), timeout=120)
        score = stub.Score(score_request([1], [2] * 300, copies=40), timeout=120)
        next(sample)
        next(score)
        with frozen(server.worker_pid):
            server.process.send_signal(signal.SIGTERM)
            said = json.loads(server.wait_for('.*"draining".*', server.err)[0])
            assert (said["seconds"], said["calls_left"]) == (100, 2)
            assert said["second_signal"] == "ends the server at once"
            with pytest.raises(grpc.RpcError) as refused:
                list(stub.Score(score_request([1], [2]), timeout=10))
            assert refused.value.code() is grpc.StatusCode.UNAVAILABLE
            assert reason_of(refused.value) == "DRAINING"
            assert health(server.listening) == NOT_SERVING
            assert health(server.listening, "") == SERVING
        assert list(sample)[-1].summary.usage.sampled_tokens == 200
        assert list(score)[-1].summary.items_ok == 40
        assert server.process.wait(60) == 0


def test_a_drain_waits_for_a_reader_that_is_slower_than_the_worker() -> None:
    """The worker is done with 6 MiB long before they are read."""
    serving_slowly = serving("--drain-seconds", "100")
    # A reader whose window grows with the time that a busy machine takes might have all of them.
    with serving_slowly as server, stub_of(server.ready, **{"http2.bdp_probe": 0}) as stub:
        call = stub.TopKLogprobs(top_k_request([2] * 400, k=2048), timeout=120)
        next(call)
        server.process.send_signal(signal.SIGTERM)
        server.wait_for('"draining"', server.err)
        until(lambda: idle(server.worker_pid))
        messages = list(call)
        rows = sum(result.score.row_count for message in messages for result in message.results)
        assert rows == 400
        assert messages[-1].summary.items_ok == 1
        assert server.process.wait(60) == 0


def test_a_drain_ends_calls_that_take_too_long() -> None:
    with serving("--drain-seconds", "0.5") as server, stub_of(server.ready) as stub:
        sample = stub.Sample(sample_request(4000), timeout=120)
        unread = stub.TopKLogprobs(top_k_request([2] * 4000, k=2048), timeout=120)
        next(sample)
        next(unread)
        worker = server.worker_pid
        began = time.monotonic()
        with frozen(worker):
            assert server.end() == 0
        assert time.monotonic() - began < 15
        assert not alive(worker)
        for call in (sample, unread):
            with pytest.raises(grpc.RpcError) as ended:
                list(call)
            assert ended.value.code() is grpc.StatusCode.UNAVAILABLE
        assert "Traceback" not in "".join(server.err)


@pytest.mark.parametrize(
    ("first", "second"), [(signal.SIGTERM, signal.SIGINT), (signal.SIGINT, signal.SIGTERM)]
)
def test_a_second_signal_ends_it_at_once(first: int, second: int) -> None:
    with serving() as server, stub_of(server.ready) as stub:
        running = stub.Sample(sample_request(4000), timeout=120)
        next(running)
        worker = server.worker_pid
        with frozen(worker):
            server.process.send_signal(first)
            server.wait_for('"draining"', server.err)
            began = time.monotonic()
            assert server.end(second) == -second
            assert time.monotonic() - began < 4
        until(lambda: not alive(worker))
        assert "Traceback" not in "".join(server.err)


def test_a_killed_server_takes_its_busy_worker_along() -> None:
    with serving() as server, stub_of(server.ready) as stub:
        running = stub.Score(score_request([1], [2] * 4000, copies=100), timeout=120)
        next(running)
        worker = server.worker_pid
        server.end(signal.SIGKILL)
        until(lambda: not alive(worker))
