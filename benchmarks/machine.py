"""What was measured, and what the machine can do: its matrix rate and its copy rate, in one run."""

from __future__ import annotations

import datetime
import importlib.metadata
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

_SECONDS = 1.0

_PIECES = 10
"""A copy of 256 MiB takes 0.1 ms on a GPU, and a launch and a wait 0.02."""


def origin() -> dict[str, Any]:
    """When, of which commit and by which arguments something is measured."""
    return {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "commit": commit(),
        "command": " ".join(sys.argv[1:]),
    }


def describe() -> dict[str, Any]:
    """Processor, memory, versions."""
    model = [
        line.split(":", 1)[1].strip()
        for line in Path("/proc/cpuinfo").read_text().splitlines()
        if line.startswith("model name")
    ]
    return {
        "processor": model[0] if model else platform.processor(),
        "cores": torch.get_num_threads(),
        "capability": torch.backends.cpu.get_cpu_capability(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "triton": version_of("triton"),
    }


def version_of(distribution: str) -> str | None:
    """Of an installed distribution; None where it is not installed."""
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


def commit() -> str:
    """The commit that is checked out, and whether files differ from it."""
    try:
        found = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--abbrev=12"],
            capture_output=True,
            text=True,
            cwd=Path(__file__).parent,
            check=False,
        )
    except OSError:
        return "unknown"
    return found.stdout.strip() or "unknown"


def matrix_rate(
    dtype: str, rows: int, inner: int, columns: int, device: str = "cpu", seconds: float = _SECONDS
) -> float:
    """FLOP/s of a product of these shapes: the best of what so many seconds allow."""
    kind = getattr(torch, dtype)
    left = torch.randn(rows, inner, device=device).to(kind)
    right = torch.randn(columns, inner, device=device).to(kind)
    return 2.0 * rows * inner * columns / _best(lambda: left @ right.t(), device, seconds)


def copy_rate(device: str = "cpu", seconds: float = _SECONDS) -> float:
    """Bytes/s that memory moves in a copy that no cache holds: read and written ones, both counted.

    The least time for reading n bytes is n over this rate, wherever a limit counts bytes
    (`limits.least_seconds`).
    """
    source = torch.ones(1 << 28, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return 2.0 * source.numel() / _best(lambda: target.copy_(source), device, seconds)


def _best(work: Callable[[], object], device: str, seconds: float) -> float:
    """Seconds of the shortest repetition that so many seconds have time for, of three at least.

    On a device a repetition is several pieces of work, so that the launch and the wait, which take
    as long as a few MB of a copy, are a small share of it.
    """
    best = float("inf")
    began = time.perf_counter()
    repetitions, pieces = 0, 1 if device == "cpu" else _PIECES
    while repetitions < 3 or time.perf_counter() - began < seconds:
        start = time.perf_counter()
        for _ in range(pieces):
            work()
        if device != "cpu":
            torch.cuda.synchronize()
        best = min(best, (time.perf_counter() - start) / pieces)
        repetitions += 1
    return best


def cpu_seconds(pid: int) -> float:
    """Processor time of a process so far, all its threads together, in steps of 10 ms."""
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
