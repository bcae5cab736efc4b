"""The whole way: pushes to a real server, idle and while it scores."""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from benchmarks.machine import cpu_seconds
from benchmarks.weights.scoring import pauses, scoring
from benchmarks.weights.tensors import bytes_of, masters
from scoring_client import AdminClient


def whole_way(tensors: dict[str, torch.Tensor], arguments: argparse.Namespace) -> dict[str, Any]:
    """Pushes without other work, from masters, and while a process scores; what that one saw."""
    log = Path("build/benchmark-weights.log")
    log.parent.mkdir(exist_ok=True)
    with _real_server(arguments, log) as (target, pid), AdminClient(target) as admin:
        workers = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        pids = {"server": [pid], "workers": [int(worker) for worker in workers]}
        total, repetitions = bytes_of(tensors), arguments.repetitions
        idle = _pushes(admin, tensors, total, pids, repetitions, first_version=1)
        wide = masters(tensors)
        converted = _pushes(admin, wide, total, pids, repetitions, first_version=50)
        with scoring(target) as latencies:
            time.sleep(arguments.seconds)
            quiet_end = time.monotonic()
            busy = _pushes(admin, tensors, total, pids, repetitions, first_version=100, pause=0.5)
            calls = latencies()
    return {
        "workers": arguments.workers,
        "pushes_idle": idle,
        "pushes_of_float32_idle": converted,
        "pushes_while_scoring": busy,
        "scoring": pauses(calls, quiet_end, busy),
    }


def _pushes(
    admin: AdminClient,
    tensors: Any,
    total: int,
    pids: dict[str, list[int]],
    repetitions: int,
    first_version: int,
    pause: float = 0.0,
) -> list[dict[str, Any]]:
    """Each with its GB/s of what is sent, `total` bytes."""
    pushes = []
    for repetition in range(repetitions + 1):
        time.sleep(pause)
        before = {name: sum(map(cpu_seconds, group)) for name, group in pids.items()}
        began, cpu = time.monotonic(), time.process_time()
        version = first_version + repetition
        update = admin.push_weights(tensors, version=version, convert_dtypes=True)
        ended = time.monotonic()
        if repetition:
            pushes.append(
                {
                    "began": began,
                    "ended": ended,
                    "gb_per_second": total / (ended - began) / 1e9,
                    "processor_seconds": {
                        "client": time.process_time() - cpu,
                        **{
                            name: sum(map(cpu_seconds, group)) - before[name]
                            for name, group in pids.items()
                        },
                    },
                    "phase_seconds": update.phase_seconds,
                    "staging": update.staging,
                }
            )
    return pushes


@contextmanager
def _real_server(arguments: argparse.Namespace, log: Path) -> Iterator[tuple[str, int]]:
    """A server of its own: where it listens, and its process id."""
    command = [Path(sys.executable).parent / "scoring-service", "serve", str(arguments.model)]
    command += ["--port", "0", "--dtype", "bfloat16", "--num-workers", str(arguments.workers)]
    with log.open("w") as output:
        process = subprocess.Popen(command, stdout=output, stderr=output, env=os.environ)
        try:
            yield _ready(log, process), process.pid
        finally:
            process.terminate()
            process.wait(60)


def _ready(log: Path, process: subprocess.Popen[bytes]) -> str:
    while process.poll() is None:
        if found := re.search(r"Ready on (\S+?:\d+)", log.read_text()):
            return found[1]
        time.sleep(0.2)
    raise RuntimeError(f"the server ended; see {log}")
