"""A server's life: loading, ready, worker killed, drained; and what its process never imports."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from scoring_client.proto import model_info_pb2, sample_pb2
from tests.e2e.served import (
    reason_of,
    retry_delay_of,
    score_request,
    serving,
    stub_of,
)

SERVICE = "scoring.v1.ScoringService"
SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


def health(target: str, service: str) -> int:
    with grpc.insecure_channel(target) as channel:
        request = health_pb2.HealthCheckRequest(service=service)
        return health_pb2_grpc.HealthStub(channel).Check(request, timeout=10).status


def long_sample() -> sample_pb2.SampleRequest:
    return sample_pb2.SampleRequest(
        prompts=[sample_pb2.SamplePrompt(token_ids=[1, 2, 3])],
        sampling=sample_pb2.SamplingParams(max_tokens=3000, ignore_eos=True),
    )


def until(condition, patience: float = 60.0) -> None:
    deadline = time.monotonic() + patience
    while not condition():
        assert time.monotonic() < deadline, "it did not come about in time"
        time.sleep(0.05)


def alive(pid: int) -> bool:
    try:
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except FileNotFoundError:
        return False


def test_it_listens_before_the_model_is_ready_and_says_so() -> None:
    with serving() as server:
        target = server.listening
        assert health(target, "") == SERVING
        assert health(target, SERVICE) == NOT_SERVING
        with stub_of(target) as stub, pytest.raises(grpc.RpcError) as refused:
            stub.GetModelInfo(model_info_pb2.GetModelInfoRequest(), timeout=10)
        assert refused.value.code() is grpc.StatusCode.UNAVAILABLE
        assert reason_of(refused.value) == "LOADING"
        assert server.ready == target
        assert health(target, SERVICE) == SERVING
        with stub_of(target) as stub:
            info = stub.GetModelInfo(model_info_pb2.GetModelInfoRequest(), timeout=30)
        assert info.name == "tiny"


def test_an_idle_server_ends_with_0_and_leaves_no_worker() -> None:
    with serving() as server:
        assert server.ready
        worker = server.worker_pid
        assert server.end() == 0
        until(lambda: not alive(worker))


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
def test_a_drain_lets_running_calls_end_and_refuses_new_ones(signum: int) -> None:
    with serving() as server, stub_of(server.ready) as stub:
        request = long_sample()
        request.sampling.max_tokens = 300
        running = stub.Sample(request, timeout=120)
        next(running)
        next(running)
        server.process.send_signal(signum)
        server.wait_for('"draining"', server.err)
        with pytest.raises(grpc.RpcError) as refused:
            list(stub.Score(score_request([1], [2]), timeout=10))
        assert refused.value.code() is grpc.StatusCode.UNAVAILABLE
        assert reason_of(refused.value) == "DRAINING"
        assert health(server.listening, SERVICE) == NOT_SERVING
        messages = list(running)
        assert messages[-1].summary.items_ok == 1
        assert messages[-1].summary.usage.sampled_tokens == 300
        assert server.process.wait(60) == 0


def test_a_drain_ends_calls_that_take_too_long() -> None:
    with serving("--drain-seconds", "0.5") as server, stub_of(server.ready) as stub:
        running = stub.Sample(long_sample(), timeout=120)
        next(running)
        assert server.end() == 0
        with pytest.raises(grpc.RpcError) as ended:
            list(running)
        assert ended.value.code() is grpc.StatusCode.UNAVAILABLE


def test_a_second_signal_ends_it_at_once() -> None:
    with serving() as server, stub_of(server.ready) as stub:
        running = stub.Sample(long_sample(), timeout=120)
        next(running)
        worker = server.worker_pid
        server.process.send_signal(signal.SIGTERM)
        server.wait_for('"draining"', server.err)
        began = time.monotonic()
        assert server.end() == -signal.SIGTERM
        assert time.monotonic() - began < 5
        until(lambda: not alive(worker))


def test_a_killed_server_takes_its_worker_along() -> None:
    with serving() as server:
        assert server.ready
        worker = server.worker_pid
        server.end(signal.SIGKILL)
        until(lambda: not alive(worker))


def test_a_killed_worker_costs_its_calls_and_is_replaced() -> None:
    with serving() as server, stub_of(server.ready) as stub:
        target = server.ready
        before = scores(stub)
        for _ in range(2):
            running = stub.Sample(long_sample(), timeout=120)
            next(running)
            next(running)
            worker = server.worker_pid
            os.kill(worker, signal.SIGKILL)
            with pytest.raises(grpc.RpcError) as died:
                list(running)
            assert died.value.code() is grpc.StatusCode.UNAVAILABLE
            assert reason_of(died.value) == "WORKER_DIED"
            assert retry_delay_of(died.value) is not None
            assert health(target, SERVICE) == NOT_SERVING
            until(lambda: health(target, SERVICE) == SERVING)
            assert server.worker_pid != worker
            assert scores(stub) == before
        assert server.end() == 0


def scores(stub) -> list[float]:
    messages = list(stub.Score(score_request([1, 2], [3, 4, 5]), timeout=60))
    return [x for m in messages for r in m.results for x in r.logprobs]


def test_a_short_call_does_not_wait_for_a_long_one() -> None:
    with serving() as server, stub_of(server.ready) as stub:
        ended: dict[str, float] = {}

        def run(name: str, request) -> None:
            list(stub.Score(request, timeout=300))
            ended[name] = time.monotonic()

        long_call = score_request([1, 2], list(range(2, 514)), copies=200)
        thread = threading.Thread(target=run, args=("long", long_call))
        thread.start()
        time.sleep(0.5)
        began = time.monotonic()
        run("short", score_request([1], [2, 3]))
        short = ended["short"] - began
        thread.join()
        assert short < (ended["long"] - began) / 4


def test_the_process_that_serves_never_maps_torch() -> None:
    with serving() as server, stub_of(server.ready) as stub:
        assert scores(stub)
        mapped = Path(f"/proc/{server.process.pid}/maps").read_text()
        assert "libtorch" not in mapped
        assert "libtorch" in Path(f"/proc/{server.worker_pid}/maps").read_text()


def test_the_modules_of_the_server_import_neither_torch_nor_transformers() -> None:
    code = (
        "import sys, scoring_service.cli, scoring_service.serve;"
        "print([m for m in ('torch', 'transformers', 'triton') if m in sys.modules])"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"


def test_a_full_queue_refuses_at_once_and_says_when_to_return() -> None:
    arguments = ("--max-queue-tokens", "2000")
    with serving(*arguments) as server, stub_of(server.ready) as stub:
        running = stub.Sample(long_sample(), timeout=120)
        next(running)
        next(running)
        began = time.monotonic()
        with pytest.raises(grpc.RpcError) as refused:
            list(stub.Score(score_request([1], [2] * 100), timeout=60))
        assert time.monotonic() - began < 1.0
        assert refused.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert reason_of(refused.value) == "QUEUE_FULL"
        delay = retry_delay_of(refused.value)
        assert delay is not None
        assert delay > 0
        running.cancel()
        until(lambda: answers(stub))


def answers(stub) -> bool:
    try:
        return bool(scores(stub))
    except grpc.RpcError:
        return False
