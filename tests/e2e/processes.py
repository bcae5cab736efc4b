"""Processes seen from outside: alive, at work, how large; and made to stand still."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

_TICKS = os.sysconf("SC_CLK_TCK")


def until(condition: Callable[[], bool], patience: float = 60.0) -> None:
    """Waits for a condition.

    Raises:
        AssertionError: it did not come about in time.
    """
    deadline = time.monotonic() + patience
    while not condition():
        assert time.monotonic() < deadline, "it did not come about in time"
        time.sleep(0.05)


def alive(pid: int) -> bool:
    """Whether the process exists and is no zombie."""
    try:
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False


def children(pid: int) -> set[int]:
    """Processes that this one started and that it has not waited for."""
    paths = Path(f"/proc/{pid}/task").glob("*/children")
    return {int(word) for path in paths for word in path.read_text().split()}


def kill_with_children(process: subprocess.Popen[str]) -> None:
    """kill -9 of a process and of those that it started, and waits until all of them are gone.

    A worker whose server is gone ends by itself, but some time later, and whatever a launcher
    started does not.
    """
    started = children(process.pid)
    process.kill()
    process.wait()
    for pid in started:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    until(lambda: not any(alive(pid) for pid in started))


def resident(pid: int) -> int:
    """Bytes of memory that the process holds."""
    return _memory(pid, "VmRSS")


def forget_peak(pid: int) -> None:
    """From now on `peak` tells the largest since then; see clear_refs in proc(5)."""
    Path(f"/proc/{pid}/clear_refs").write_text("5")


def peak(pid: int) -> int:
    """Most bytes of memory that the process has held."""
    return _memory(pid, "VmHWM")


def _memory(pid: int, name: str) -> int:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith(name):
            return int(line.split()[1]) * 1024
    raise AssertionError(f"no {name}")


def descriptors(pid: int) -> int:
    """Files, sockets and pipes that the process holds open."""
    return len(list(Path(f"/proc/{pid}/fd").iterdir()))


def cpu_seconds(pid: int) -> float:
    """Seconds of computation so far, of all threads."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / _TICKS


def idle(pid: int, seconds: float = 1.0) -> bool:
    """Whether the process does nothing for so long."""
    before = cpu_seconds(pid)
    time.sleep(seconds)
    return cpu_seconds(pid) - before < 0.1 * seconds


@contextmanager
def frozen(pid: int) -> Iterator[None]:
    """The process stands still, so that what others do meanwhile does not depend on its speed."""
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        if alive(pid):
            os.kill(pid, signal.SIGCONT)
