"""Signals to a server that is process 1, as in a container: the kernel spares it their effects."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest

from tests.e2e.processes import children, until

UNSHARE = ("unshare", "--pid", "--fork", "--kill-child")

STARTING = """
import time
import scoring_service.cli as cli

def load(*_arguments):
    print("starting", flush=True)
    time.sleep(1000)

cli.run_server = load
cli.main()
"""

DRAINING = """
import asyncio
from scoring_service.serve import _stop_event

async def main():
    stop = _stop_event()
    print("serving", flush=True)
    await stop.wait()
    print("draining", flush=True)
    await asyncio.sleep(1000)

asyncio.run(main())
"""

# A signal may come to any thread of a process, and then what sleeps in the first is not cut short.
TO_ANOTHER_THREAD = """
import asyncio
import os
import signal
import threading
import time
from scoring_service.serve import _stop_event

def signal_here():
    time.sleep(1)
    signal.pthread_kill(threading.get_ident(), signal.SIGTERM)

async def main():
    stop = _stop_event()
    os.kill(os.getpid(), signal.SIGTERM)
    await stop.wait()
    threading.Thread(target=signal_here, daemon=True).start()
    await asyncio.sleep(1000)

asyncio.run(main())
"""


def can_unshare() -> bool:
    return subprocess.run([*UNSHARE, "true"], capture_output=True, check=False).returncode == 0


needs_namespaces = pytest.mark.skipif(not can_unshare(), reason="no namespaces for processes")
FIRST = pytest.param(UNSHARE, 128, marks=needs_namespaces, id="process 1")
OTHER = pytest.param((), 0, id="another")


def started(launcher: tuple[str, ...], code: str, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [*launcher, sys.executable, "-c", code, *arguments], stdout=subprocess.PIPE, text=True
    )


def inner(process: subprocess.Popen[str], launcher: tuple[str, ...]) -> int:
    """The process that the launcher started, if there is one."""
    if not launcher:
        return process.pid
    until(lambda: bool(children(process.pid)))
    (pid,) = children(process.pid)
    return pid


def wait(process: subprocess.Popen[str]) -> int:
    """Its exit code; killed where it does not end."""
    try:
        return process.wait(30)
    finally:
        process.kill()


@pytest.mark.parametrize(("launcher", "base"), [FIRST, OTHER])
def test_a_signal_ends_a_server_that_is_starting(launcher: tuple[str, ...], base: int) -> None:
    with started(launcher, STARTING, "serve") as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "starting\n"
        os.kill(inner(process, launcher), signal.SIGTERM)
        ended = wait(process)
    assert ended == (base + signal.SIGTERM if base else -signal.SIGTERM)


@pytest.mark.parametrize("second", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize(("launcher", "base"), [FIRST, OTHER])
def test_a_second_signal_ends_a_server_that_drains(
    launcher: tuple[str, ...], base: int, second: signal.Signals
) -> None:
    with started(launcher, DRAINING) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "serving\n"
        pid = inner(process, launcher)
        os.kill(pid, signal.SIGTERM)
        assert process.stdout.readline() == "draining\n"
        os.kill(pid, second)
        ended = wait(process)
    assert ended == (base + second if base else -second)


def test_a_second_signal_wakes_a_server_that_sleeps() -> None:
    with started((), TO_ANOTHER_THREAD) as process:
        ended = wait(process)
    assert ended == -signal.SIGTERM
