"""Everything else that goes wrong: memory, disks, clients, networks, the end of the server."""

from __future__ import annotations

import fcntl
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import grpc
import pytest

from tests.chaos.load import RETRYABLE, Load
from tests.e2e.calls import (
    SERVING,
    health,
    reason_of,
    score_request,
    scores,
    stub_of,
    top_k_request,
)
from tests.e2e.processes import descriptors, idle, resident, until
from tests.e2e.served import BIN, ROOT, serving
from tests.ports import free_port


def test_a_worker_that_gets_no_more_memory_fails_calls_cleanly_and_recovers() -> None:
    with serving() as server, stub_of(server.ready) as stub:
        before = scores(stub)
        load = Load(server.ready, threads=3)
        load.learn()
        worker = server.worker_pid
        pages = int(Path(f"/proc/{worker}/statm").read_text().split()[0])
        virtual = pages * os.sysconf("SC_PAGESIZE")
        resource.prlimit(worker, resource.RLIMIT_AS, (virtual + (1 << 20), resource.RLIM_INFINITY))
        codes = set()
        for _ in range(6):
            with pytest.raises(grpc.RpcError) as failed:
                check_items(stub.TopKLogprobs(top_k_request([2] * 3000, k=2048), timeout=60))
            codes.add(reason_of(failed.value) or failed.value.details())
            if "worker_died" in "".join(server.err):
                break
        assert codes <= {"OUT_OF_MEMORY", "WORKER_DIED", "LOADING"}
        until(lambda: "worker_died" in "".join(server.err))
        until(lambda: health(server.ready) == SERVING)
        assert server.worker_pid != worker
        assert scores(stub) == before
        with load.running():
            time.sleep(1.0)
        assert not load.wrong
        assert set(load.counted()) == {"ok"}


def check_items(messages: object) -> None:
    """Raises the first item's fault as the call's."""
    for message in messages:  # type: ignore[attr-defined]
        for result in message.results:
            if result.score.HasField("status"):
                raise ItemFault(result.score.status)


class ItemFault(grpc.RpcError):
    """A fault of an item, as `reason_of` reads it."""

    def __init__(self, status: object) -> None:
        super().__init__()
        self._status = status

    def trailing_metadata(self) -> list[tuple[str, bytes]]:
        return [("grpc-status-details-bin", self._status.SerializeToString())]  # type: ignore[attr-defined]

    def details(self) -> str:
        return self._status.message  # type: ignore[attr-defined]


@contextmanager
def logging_to(out: IO[Any] | int) -> Iterator[tuple[subprocess.Popen[bytes], str]]:
    """A server that answers, whose output goes there, and its address."""
    port = free_port()
    target = f"127.0.0.1:{port}"
    process = subprocess.Popen(
        [BIN / "scoring-service", "serve", "--port", str(port), "--log-format", "json"],
        stdout=out,
        stderr=out,
        cwd=ROOT,
    )
    try:
        until(lambda: serves(target), patience=120)
        yield process, target
    finally:
        process.kill()
        process.wait()


def test_a_full_disk_for_logs_fails_no_call() -> None:
    """/dev/full refuses every byte, as a disk without room does: `serve >log 2>&1`."""
    with Path("/dev/full").open("w") as full, logging_to(full) as (process, target):
        load = Load(target, threads=2)
        load.learn()
        with load.running():
            time.sleep(1.0)
        assert not load.wrong
        assert set(load.counted()) == {"ok"}
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0


def test_a_log_that_nobody_reads_holds_up_no_call_and_no_drain() -> None:
    """As behind `docker logs` that stands still: the pipe is full after a few lines."""
    reading, writing = os.pipe()
    fcntl.fcntl(writing, fcntl.F_SETPIPE_SZ, 4096)
    try:
        with logging_to(writing) as (process, target), stub_of(target) as stub:
            for _ in range(60):
                *_, last = stub.Score(score_request([1], [2, 3]), timeout=30)
                assert last.summary.items_ok == 1
            assert health(target) == SERVING
            process.send_signal(signal.SIGTERM)
            assert process.wait(60) == 0
    finally:
        os.close(reading)
        os.close(writing)


def serves(target: str) -> bool:
    """Whether somebody answers there, and is ready."""
    try:
        return health(target) == SERVING
    except grpc.RpcError:
        return False


VANISHING = """
import sys
from tests.e2e.calls import sample_request, stub_of
with stub_of(sys.argv[1]) as stub:
    call = stub.Sample(sample_request(4000, n=60))
    next(call); next(call)
    print("under way", flush=True)
    sys.stdin.read()
"""


def test_clients_that_are_killed_leave_nothing_behind() -> None:
    with serving("--metrics-port", "0") as server, stub_of(server.ready) as stub:
        before = scores(stub)
        pids = (server.process.pid, server.worker_pid)
        open_before = descriptors(pids[0])
        for _ in range(3):
            client = subprocess.Popen(
                [sys.executable, "-c", VANISHING, server.ready],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                cwd=ROOT,
            )
            assert client.stdout is not None
            assert client.stdout.readline() == b"under way\n"
            client.kill()
            client.wait()
        until(lambda: idle(pids[1]), patience=30)
        found = server.metrics
        assert found["scoring_queue_tokens"] == 0
        assert found["scoring_num_requests_running"] == 0
        until(lambda: server.metrics["scoring_kv_cache_usage_perc"] == 0.0, patience=10)
        until(lambda: descriptors(pids[0]) <= open_before + 2, patience=10)
        assert scores(stub) == before


def test_a_reader_that_stops_is_held_back_and_at_last_let_go() -> None:
    with serving("--metrics-port", "0", "--reader-timeout", "3") as server:
        load = Load(server.ready, threads=1)
        load.learn()
        with stub_of(server.ready) as stub:
            request = top_k_request([2] * 3000, k=2048, copies=8)
            list(stub.TopKLogprobs(top_k_request([2] * 3000, k=2048), timeout=120))
            pid = server.process.pid
            before = resident(pid)
            stalled = stub.TopKLogprobs(request, timeout=120)
            next(stalled)
            with load.running():
                server.wait_for('"reader_stalled"', server.err)
            assert resident(pid) - before < 100 << 20
            assert set(load.counted()) == {"ok"}, "others did not notice"
            assert server.metrics["scoring_unread_reply_bytes"] == 0
            with pytest.raises(grpc.RpcError) as ended:
                list(stalled)
            assert ended.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
            assert reason_of(ended.value) == "READER_STALLED"


def test_sigterm_under_load_fails_nothing_that_was_under_way() -> None:
    with serving("--drain-seconds", "60") as server:
        load = Load(server.ready, threads=6)
        load.learn()
        refusals = {"DRAINING", "UNAVAILABLE"}
        with load.running():
            until(lambda: load.counted()["ok"] > 5, patience=60)
            asked = time.monotonic()
            server.process.send_signal(signal.SIGTERM)
            server.wait_for('"draining"', server.err)
            # Calls that were under way may take their time; who calls then is refused.
            until(lambda: not refusals.isdisjoint(load.counted(since=asked)), patience=60)
        assert server.process.wait(60) == 0
        assert not load.wrong
        assert not load.broken, "calls that were under way when the signal came"
        assert set(load.counted(until=asked)) == {"ok"}
        assert set(load.counted(since=asked)) <= {*refusals, "ok"}
        assert {"DRAINING"} <= RETRYABLE
