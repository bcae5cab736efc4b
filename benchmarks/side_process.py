"""A side's process as the harness holds it: questions, answers, memory and processor time."""

from __future__ import annotations

import contextlib
import json
import os
import select
import subprocess
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks.machine import cpu_seconds
from benchmarks.sides import SideConfig

ROOT = Path(__file__).parent.parent

_FOR_EVER = float("inf")

_SAID = 3000
"""Characters of a side's log that tell why it ended: the machine may not be there any more."""


class SideProcess:
    """Starts `python -m benchmarks.side` and asks it to run workloads; its output is in `log`."""

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
        self.version = ""
        self.pids: dict[str, int] = {}
        self.backend: dict[str, str | None] = {}

    def wait(self, patience: float) -> None:
        """Until it has loaded its model.

        Raises:
            RuntimeError: it did not within so many seconds.
        """
        hello = self._read(patience)
        self.version, self.pids, self.backend = hello["version"], hello["pids"], hello["backend"]

    def run(
        self, workload: str, size: str, vocab: int, repetition: int, patience: float = _FOR_EVER
    ) -> dict[str, Any]:
        """A repetition: the side's outcome, and what its processes used meanwhile.

        Raises:
            RuntimeError: the side ended, or did not answer within `patience` seconds.
        """
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
        outcome = self._read(patience)
        outcome["cpu_seconds"] = {
            name: cpu_seconds(pid) - before[name] for name, pid in self.pids.items()
        }
        outcome["loopback_bytes"] = _loopback_bytes() - loopback
        outcome["peak_bytes"] = {name: _peak(pid) for name, pid in self.pids.items()}
        return outcome

    def end(self) -> None:
        """Tells the side that nothing more comes; `close` waits until it has ended."""
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()

    def close(self, patience: float) -> None:
        """Ends the process: by itself within so many seconds, or by force."""
        self.end()
        try:
            self._process.wait(max(0.0, patience))
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._log.close()

    def _read(self, patience: float) -> dict[str, Any]:
        assert self._process.stdout is not None
        # Lines are whole and one at a time: nothing of the next one waits in the buffer.
        within = None if patience == _FOR_EVER else max(0.0, patience)
        if not select.select([self._process.stdout], [], [], within)[0]:
            self._process.kill()
            raise RuntimeError(f"{self.name} did not answer for {patience:.0f} s{self._said()}")
        line = self._process.stdout.readline()
        if not line:
            code = self._process.wait()
            raise RuntimeError(f"{self.name} ended with {code}{self._said()}")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def _said(self) -> str:
        """The end of its log, in words of an error."""
        written = Path(self._log.name).read_text(errors="replace")
        return f"; {self._log.name} ends with:\n{written[-_SAID:]}"


def _loopback_bytes() -> int:
    """Received on this machine's loopback interface so far, headers included; 0 where unknown."""
    if not Path("/proc/net/dev").is_file():
        return 0
    for line in Path("/proc/net/dev").read_text().splitlines():
        if line.strip().startswith("lo:"):
            return int(line.split(":", 1)[1].split()[0])
    return 0


def _reset_peak(pid: int) -> None:
    """Lets the kernel count the peak of resident memory from here on."""
    with contextlib.suppress(OSError):  # some sandboxes have no such file
        Path(f"/proc/{pid}/clear_refs").write_text("5")


def _peak(pid: int) -> int:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmHWM"):
            return int(line.split()[1]) * 1024
    return 0
