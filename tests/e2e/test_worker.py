"""The worker seen from outside: killed, stuck, and alone in having torch."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import grpc
import numpy as np
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from scoring_client.proto import tensor_pb2
from tests.e2e.calls import (
    NOT_SERVING,
    SERVICE,
    SERVING,
    health,
    reason_of,
    retry_delay_of,
    sample_request,
    score_request,
    scores,
    stub_of,
)
from tests.e2e.processes import children, frozen, until
from tests.e2e.served import serving


def test_a_killed_worker_costs_its_calls_and_is_replaced() -> None:
    with serving() as server, stub_of(server.ready) as stub:
        before = scores(stub)
        watched = watch_health(server.ready)
        for _ in range(2):
            running = stub.Sample(sample_request(3000), timeout=120)
            next(running)
            worker = server.worker_pid
            os.kill(worker, signal.SIGKILL)
            with pytest.raises(grpc.RpcError) as died:
                list(running)
            assert died.value.code() is grpc.StatusCode.UNAVAILABLE
            assert reason_of(died.value) == "WORKER_DIED"
            assert retry_delay_of(died.value) is not None
            assert health(server.ready, "") == SERVING, "the process is alive all the time"
            until(lambda: health(server.ready) == SERVING)
            assert server.worker_pid != worker
            assert scores(stub) == before, "the same bits"
        assert server.end() == 0
        assert watched[:5] == [SERVING, NOT_SERVING, SERVING, NOT_SERVING, SERVING]


def watch_health(target: str) -> list[int]:
    """Every state that the server reports from now on, as they come."""
    seen: list[int] = []

    def watch() -> None:
        with grpc.insecure_channel(target) as channel:
            request = health_pb2.HealthCheckRequest(service=SERVICE)
            try:
                for answer in health_pb2_grpc.HealthStub(channel).Watch(request, timeout=280):
                    seen.append(answer.status)
            except grpc.RpcError:
                return

    threading.Thread(target=watch, daemon=True).start()
    until(lambda: bool(seen))
    return seen


def test_a_worker_that_is_stuck_does_not_stop_the_server() -> None:
    """Calls larger than what fits between the processes are admitted while it takes none."""
    large = score_request([1], [2] * 100)
    ids_n_C = np.tile(np.arange(2048, dtype="<i4"), (100, 1))
    candidates = tensor_pb2.Tensor(
        dtype=tensor_pb2.DATA_TYPE_INT32, shape=ids_n_C.shape, data=ids_n_C.tobytes()
    )
    large.groups[0].completions[0].candidate_token_ids.CopyFrom(candidates)
    with serving() as server, stub_of(server.ready) as stub:
        before = scores(stub)
        with frozen(server.worker_pid):
            calls = [stub.Score(large, timeout=120) for _ in range(3)]
            openings = [next(call) for call in calls]
            assert all(opening.HasField("provenance") for opening in openings)
            assert health(server.ready) == SERVING
        assert [list(call)[-1].summary.items_ok for call in calls] == [1] * 3
        assert scores(stub) == before


def test_the_process_that_serves_never_maps_torch() -> None:
    with serving() as server, stub_of(server.ready) as stub:
        assert scores(stub)
        assert children(server.process.pid) == {server.worker_pid}
        assert "libtorch" not in Path(f"/proc/{server.process.pid}/maps").read_text()
        assert "libtorch" in Path(f"/proc/{server.worker_pid}/maps").read_text()


def test_the_modules_of_the_server_import_neither_torch_nor_transformers() -> None:
    code = (
        "import sys, scoring_service.cli, scoring_service.serve;"
        "print([m for m in ('torch', 'transformers', 'triton') if m in sys.modules])"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"
