"""From the start to the first answer: listening, loading, ready; or not loadable."""

from __future__ import annotations

import os
import shutil
import signal
import sys
import time
from pathlib import Path

import grpc
import pytest

from scoring_client.proto import model_info_pb2
from scoring_service.models import tiny_model_path
from tests.e2e.calls import (
    NOT_SERVING,
    SERVICE,
    SERVING,
    health,
    reason_of,
    retry_delay_of,
    score_request,
    scores,
    stub_of,
)
from tests.e2e.processes import alive, cpu_seconds, frozen, until
from tests.e2e.served import Served, serving


def test_it_listens_before_the_model_is_ready_and_says_so() -> None:
    with serving() as server, stub_of(server.listening) as stub:
        target = server.listening
        with frozen(server.worker_pid):
            assert health(target, "") == SERVING
            assert health(target, SERVICE) == NOT_SERVING
            (model,) = stub.ListModels(model_info_pb2.ListModelsRequest(), timeout=10).models
            assert (model.name, model.ready) == ("tiny", False)
            with pytest.raises(grpc.RpcError) as refused:
                stub.GetModelInfo(model_info_pb2.GetModelInfoRequest(), timeout=10)
            assert_loading(refused.value)
            with pytest.raises(grpc.RpcError) as refused:
                list(stub.Score(score_request([1], [2]), timeout=10))
            assert_loading(refused.value)
            assert not server.out, "nothing is announced before it is true"
        assert server.ready == target
        assert health(target, SERVICE) == SERVING
        info = stub.GetModelInfo(model_info_pb2.GetModelInfoRequest(), timeout=30)
        assert info.name == "tiny"
        assert scores(stub)


def assert_loading(error: grpc.RpcError) -> None:
    assert error.code() is grpc.StatusCode.UNAVAILABLE
    assert reason_of(error) == "LOADING"
    assert retry_delay_of(error) is not None


def ended_by_itself(server: Served) -> str:
    """What it wrote on standard error before it ended with exit code 1."""
    assert server.process.wait(120) == 1
    server.join()
    assert not server.out
    return "".join(server.err)


def test_a_checkpoint_that_cannot_be_read_ends_the_server_with_its_name(tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(tiny_model_path(), broken)
    whole = (broken / "model.safetensors").read_bytes()
    (broken / "model.safetensors").write_bytes(whole[: len(whole) // 2])
    with serving(str(broken)) as server:
        written = ended_by_itself(server)
    assert f"error: cannot load the model '{broken}'" in written
    assert "Traceback" not in written


def test_a_model_that_kills_its_worker_is_not_tried_for_ever() -> None:
    with serving() as server:
        assert server.listening
        os.kill(server.worker_pid, signal.SIGKILL)
        written = ended_by_itself(server)
    assert "error: the worker died while it loaded the model (SIGKILL)" in written


def test_a_worker_that_cannot_be_started_ends_the_server_with_the_reason() -> None:
    """As where there are no more processes, files or memory to be had."""
    no_python = (
        "import runpy, sys; sys.executable = '/nothing/python'; sys.argv.pop(0); "
        "runpy.run_path(sys.argv[0], run_name='__main__')"
    )
    with serving("--num-workers", "2", launcher=(sys.executable, "-c", no_python)) as server:
        written = ended_by_itself(server)
    assert "error: the worker could not be started (No such file or directory)\n" in written
    assert '"stopped"' in written
    assert "Traceback" not in written


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_while_loading_ends_it_with_0(signum: int) -> None:
    """To the whole group, as a terminal sends it at Ctrl-C."""
    with serving() as server:
        assert server.listening
        worker = server.worker_pid
        until(lambda: cpu_seconds(worker) > 0.3)  # it imports torch and ignores no signal yet
        os.killpg(server.process.pid, signum)
        began = time.monotonic()
        assert server.process.wait(60) == 0
        assert time.monotonic() - began < 4, "there is nothing to wait for"
        server.join()
        assert not alive(worker)
        assert "Traceback" not in "".join(server.err)


def test_a_server_killed_while_it_loads_takes_its_worker_along() -> None:
    with serving() as server:
        assert server.listening
        worker = server.worker_pid
        server.end(signal.SIGKILL)
        until(lambda: not alive(worker))
