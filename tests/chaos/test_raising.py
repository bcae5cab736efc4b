"""A worker that raises: the call that made it so pays, and nobody else."""

from __future__ import annotations

import json
import time
from pathlib import Path

import grpc
import pytest

from tests.chaos.load import Load
from tests.chaos.raising_model import EXITS, RAISES, save_raising_model
from tests.e2e.calls import SERVING, health, reason_of, score_request, scores, stub_of
from tests.e2e.processes import children, until
from tests.e2e.served import serving


def test_a_worker_that_raises_costs_the_call_that_made_it_so(tmp_path: Path) -> None:
    model = str(save_raising_model(tmp_path))
    env = {"HF_MODULES_CACHE": str(tmp_path / "modules")}
    flags = (model, "--trust-remote-code", "--num-workers", "2", "--metrics-port", "0")
    with serving(*flags, env=env) as server, stub_of(server.ready) as stub:
        until(lambda: server.metrics["scoring_worker_ready"] == 2)
        before = scores(stub)
        workers = children(server.process.pid)
        load = Load(server.ready, threads=2)
        load.learn()
        with load.running():
            # Calls that shared its step are computed again, each alone.
            raised = failure(stub, RAISES)
            assert raised.code() is grpc.StatusCode.INTERNAL
            assert "the model met" not in raised.details(), "no inner words for callers"
            assert children(server.process.pid) == workers, "both workers are still there"
            # A process that ends takes the call to the other one, once, and that ends too.
            exited = failure(stub, EXITS)
            assert exited.code() is grpc.StatusCode.UNAVAILABLE
            assert reason_of(exited) == "WORKER_DIED"
            until(lambda: server.metrics["scoring_worker_ready"] == 2)
            time.sleep(0.5)
        assert not load.wrong, load.wrong[:3]
        assert set(load.counted()) <= {"ok", "WORKER_DIED", "LOADING"}
        print(dict(load.counted()))
        assert server.metrics["scoring_worker_restarts_total"] == 2
        assert server.metrics["scoring_queue_taken_tokens"] == 0
        bug = json.loads(server.wait_for('"bug"', server.err).string)
        assert "the model met a token" in bug["exception"]
        retried = [json.loads(line) for line in server.err if '"retried"' in line]
        ids = {f"r-{token}" for token in (RAISES, EXITS)}
        assert {bug["request_id"]} | {line["request_id"] for line in retried} >= ids
        assert health(server.ready) == SERVING
        assert scores(stub) == before


def test_the_code_of_a_model_does_not_run_unless_it_is_asked_for(tmp_path: Path) -> None:
    """Its layers are those of the library, and its file is not even imported."""
    model = save_raising_model(tmp_path)
    imported = tmp_path / "imported"
    with (model / "modeling_raising.py").open("a") as code:
        code.write(f"\nopen({str(imported)!r}, 'w').close()\n")
    env = {"HF_MODULES_CACHE": str(tmp_path / "modules")}
    with serving(str(model), env=env) as server, stub_of(server.ready) as stub:
        messages = list(stub.Score(score_request([1, 2], [3, RAISES, EXITS, 5]), timeout=60))
        assert messages[-1].summary.items_ok == 1
    assert not imported.exists()
    with serving(str(model), "--trust-remote-code", env=env) as server:
        assert server.ready
    assert imported.exists(), "it would have said so"


def failure(stub: object, token: int) -> grpc.RpcError:
    """How a call with such a token ends."""
    request = score_request([1, 2], [3, token, 5])
    request.context.request_id = f"r-{token}"
    with pytest.raises(grpc.RpcError) as failed:
        list(stub.Score(request, timeout=60))  # type: ignore[attr-defined]
    return failed.value
