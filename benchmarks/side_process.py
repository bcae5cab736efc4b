"""A side's process as the harness holds it: questions, answers, memory and processor time."""

from __future__ import annotations

import json
import os
import subprocess
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks.machine import cpu_seconds
from benchmarks.sides import SideConfig

ROOT = Path(__file__).parent.parent


class SideProcess:
    """Starts `python -m benchmarks.side` and asks it to run workloads.

    Raises:
        RuntimeError: the side could not be started; its output is in `log`.
    """

    def __init__(self, name: str, python: Path, config: SideConfig, log: Path) -> None:
        self.name = name
        self._log = log.open("w")
        paths = [str(ROOT), str(ROOT / "clients")]
        self._process = subprocess.Popen(
            [python, "-m", "benchmarks.side", name, json.dumps(asdict(config))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
            bufsize=1,
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(paths), "HF_HUB_OFFLINE": "1"},
        )
        hello = self._read()
        self.version: str = hello["version"]
        self.pids: dict[str, int] = hello["pids"]

    def run(self, workload: str, size: str, vocab: int, repetition: int) -> dict[str, Any]:
        """A repetition: the side's outcome, and what its processes used meanwhile."""
        before = {name: cpu_seconds(pid) for name, pid in self.pids.items()}
        for pid in self.pids.values():
            _reset_peak(pid)
        loopback = _loopback_bytes()
        assert self._process.stdin is not None
        question = {
            "workload": workload,
            "size": size,
            "vocab": vocab,
            "repetition": repetition,
        }
        print(json.dumps(question), file=self._process.stdin)
        outcome = self._read()
        outcome["cpu_seconds"] = {
            name: cpu_seconds(pid) - before[name] for name, pid in self.pids.items()
        }
        outcome["loopback_bytes"] = _loopback_bytes() - loopback
        outcome["peak_bytes"] = {name: _peak(pid) for name, pid in self.pids.items()}
        return outcome

    def close(self) -> None:
        """Ends the process."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(120)
        self._log.close()

    def _read(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            code = self._process.wait()
            raise RuntimeError(f"{self.name} ended with {code}; see {self._log.name}")
        answer: dict[str, Any] = json.loads(line)
        return answer


def _loopback_bytes() -> int:
    """Received on this machine's loopback interface so far, headers included."""
    for line in Path("/proc/net/dev").read_text().splitlines():
        if line.strip().startswith("lo:"):
            return int(line.split(":", 1)[1].split()[0])
    return 0


def _reset_peak(pid: int) -> None:
    """Lets the kernel count the peak of resident memory from here on."""
    Path(f"/proc/{pid}/clear_refs").write_text("5")


def _peak(pid: int) -> int:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmHWM"):
            return int(line.split()[1]) * 1024
    return 0
