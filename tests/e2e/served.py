"""`scoring-service serve` as a process: started, waited for, ended by its pid."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from prometheus_client.parser import text_string_to_metric_families

from tests.e2e.processes import children, kill_with_children

ROOT = Path(__file__).resolve().parents[2]
BIN = Path(os.environ.get("SCORING_SERVICE_BIN", Path(sys.executable).parent))
"""Another environment's, for tests that run beside a framework's own pins."""
PATIENCE = 120.0
"""Seconds that a start may take on a busy machine."""


class Served:
    """A server process and what it printed."""

    def __init__(
        self,
        arguments: Sequence[str],
        env: dict[str, str] | None = None,
        launcher: Sequence[str] = (),
        metrics_host: str | None = None,
    ) -> None:
        self.metrics_host = metrics_host
        self.out: list[str] = []
        self.err: list[str] = []
        self._grown = threading.Condition()
        self.process = subprocess.Popen(
            # A launcher ends by executing what follows it, in its own process.
            [*launcher, BIN / "scoring-service", "serve", *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=ROOT,
            env={**os.environ, **(env or {})},
            # A group of its own, so that a test can send it what a terminal sends at Ctrl-C.
            start_new_session=True,
        )
        self._readers = [
            threading.Thread(target=self._read, args=(pipe, lines), daemon=True)
            for pipe, lines in ((self.process.stdout, self.out), (self.process.stderr, self.err))
        ]
        for reader in self._readers:
            reader.start()

    def _read(self, pipe: Any, lines: list[str]) -> None:
        for line in pipe:
            with self._grown:
                lines.append(line)
                self._grown.notify_all()

    def wait_for(self, pattern: str, lines: list[str], patience: float = PATIENCE) -> re.Match[str]:
        """The first line that matches, waiting for it to come."""
        deadline = time.monotonic() + patience
        with self._grown:
            while True:
                for line in lines:
                    if found := re.search(pattern, line):
                        return found
                left = deadline - time.monotonic()
                if left <= 0 or self.process.poll() is not None:
                    raise AssertionError(f"no {pattern!r} in:\n{''.join(self.out + self.err)}")
                self._grown.wait(min(left, 0.2))

    @property
    def listening(self) -> str:
        """host:port, as soon as it listens."""
        return self.wait_for(r'"address": "([^"]+)"', self.err)[1]

    @property
    def ready(self) -> str:
        """host:port, once the model answers."""
        self.wait_for(r'"event": "ready"', self.err)
        return self.listening

    @property
    def metrics(self) -> dict[str, float]:
        """Sums over the labels of each metric; the server was started with --metrics-port 0."""
        sums: dict[str, float] = {}
        for sample in self._samples():
            sums[sample.name] = sums.get(sample.name, 0.0) + sample.value
        return sums

    def metric(self, name: str, **labels: str) -> float:
        """Sum of a metric over the labels that are not given; 0 where it has no sample."""
        found = (sample for sample in self._samples() if sample.name == name)
        return sum(sample.value for sample in found if labels.items() <= sample.labels.items())

    def _samples(self) -> list[Any]:
        port = self.wait_for(r'"metrics_port": (\d+)', self.err)[1]
        host = self.metrics_host or self.listening.rpartition(":")[0]
        with urllib.request.urlopen(f"http://{host}:{port}/metrics") as answer:
            families = text_string_to_metric_families(answer.read().decode())
        return [sample for family in families for sample in family.samples]

    @property
    def worker_pid(self) -> int:
        """The worker's process."""
        (found,) = children(self.process.pid)
        return found

    def end(self, signum: int = signal.SIGTERM, patience: float = PATIENCE) -> int:
        """Sends the signal; the exit code."""
        self.process.send_signal(signum)
        code = self.process.wait(patience)
        self.join()
        return code

    def join(self) -> None:
        """Waits for the last lines of a process that has ended."""
        for reader in self._readers:
            reader.join(10)


@contextmanager
def serving(
    *arguments: str,
    env: dict[str, str] | None = None,
    launcher: Sequence[str] = (),
    metrics_host: str | None = None,
) -> Iterator[Served]:
    """A server of its own on a free port; killed with its workers if the test did not end it.

    Args:
        arguments: of `serve`.
        env: beside this process's own.
        launcher: a command that runs the server and becomes it.
        metrics_host: where its metrics are read; None = where it listens.
    """
    flags = ["--port", "0", *arguments]  # logs are JSON wherever they go to no terminal
    served = Served(flags, env, launcher, metrics_host)
    try:
        yield served
    finally:
        if served.process.poll() is None:
            kill_with_children(served.process)
