"""A log that nobody reads: lines are lost and counted, and nobody waits for them."""

from __future__ import annotations

import fcntl
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from prometheus_client import generate_latest

from scoring_service.telemetry.log_writer import LogWriter
from scoring_service.telemetry.metrics import Metrics

_PIPE_BYTES = 4096
"""As small as a pipe may be; as a rule it takes 64 KiB."""


@contextmanager
def unread_pipe() -> Iterator[tuple[int, int]]:
    """Both ends of a pipe that takes little."""
    reading, writing = os.pipe()
    fcntl.fcntl(writing, fcntl.F_SETPIPE_SZ, _PIPE_BYTES)
    try:
        yield reading, writing
    finally:
        for end in (reading, writing):
            os.close(end)


def read_all(fd: int, enough: str) -> str:
    """What comes until a text was read."""
    text = ""
    while enough not in text:
        text += os.read(fd, 1 << 16).decode()
    return text


def test_lines_without_room_are_lost_counted_and_told_of_once_somebody_reads() -> None:
    with unread_pipe() as (reading, writing):
        log = LogWriter(writing, lambda lost: f"lost {lost}\n", most=10_000)
        metrics = Metrics()
        metrics.watch_log(log)
        for number in range(1000):
            log.write(f"{number:099}\n")
        assert not log.flush(0.1), "nobody has read a line"
        # The bound, and what the thread had taken into the pipe before it was reached.
        assert 1000 - (10_000 + 2 * _PIPE_BYTES) // 100 <= log.lost <= 1000 - 10_000 // 100
        assert (
            f"scoring_log_lines_lost_total {log.lost}.0"
            in generate_latest(metrics.registry).decode()
        )
        lines = read_all(reading, "lost").splitlines()
        assert lines[-1] == f"lost {log.lost}"
        assert [int(line) for line in lines[:-1]] == list(range(1000 - log.lost))
        log.write("again\n")
        assert read_all(reading, "again") == "again\n", "and no loss is told of twice"


def test_the_last_lines_of_a_process_that_ends_are_written() -> None:
    script = """
import logging, structlog
from scoring_service.telemetry.logs import configure_logs
configure_logs("info", "json")
for number in range(2000):
    structlog.get_logger().info("one", number=number)
logging.getLogger("a.library").warning("what a library says")
"""
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=60
    )
    *lines, last = done.stderr.splitlines()
    assert [json.loads(line)["number"] for line in lines] == list(range(2000))
    assert last == "what a library says"


def test_a_process_whose_last_lines_nobody_reads_ends_all_the_same() -> None:
    script = """
import structlog
from scoring_service.telemetry.logs import configure_logs
configure_logs("info", "json")
for number in range(100):
    structlog.get_logger().info("one", text="x" * 1000)
"""
    with unread_pipe() as (_reading, writing):
        process = subprocess.Popen([sys.executable, "-c", script], stderr=writing)
        try:
            assert process.wait(60) == 0
        finally:
            process.kill()
            process.wait()
