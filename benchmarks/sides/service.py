"""The whole service: client, gRPC over loopback, server process, worker process."""

from __future__ import annotations

import re
import subprocess
import sys
import threading
import time
from collections.abc import Generator
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.outcome import Outcome
from benchmarks.sides import SideConfig
from benchmarks.workloads import Mixed, Sampling, Scoring, Work
from scoring_client import ScoringClient
from scoring_service import __version__


class _WatchedClient(ScoringClient):
    """Keeps the last call that was begun: an iterator of results does not tell what it cost."""

    call: Any = None

    def _run(self, job: Any) -> Generator[Any, None, None]:
        self.call = job.call
        return super()._run(job)


class Service:
    """Starts `scoring-service serve` and calls it with the project's client."""

    def __init__(self, config: SideConfig) -> None:
        self.version = f"scoring-service {__version__}"
        command = Path(sys.executable).with_name("scoring-service")
        flags = ["--port", "0", "--dtype", config.dtype, "--head-dtype", config.head_dtype]
        flags += ["--residual-dtype", config.residual_dtype]
        flags += ["--device", config.device, "--log-level", "error"]
        if config.memory_utilization is not None:
            flags += ["--memory-utilization", str(config.memory_utilization)]
        self._server = subprocess.Popen(
            [command, "serve", config.model, *flags], stdout=subprocess.PIPE, text=True
        )
        self.target = self._await_address()
        self._client = _WatchedClient(self.target)
        info = self._client.model_info()
        self.backend = {"backend": info.backend, "path_reason": info.path_reason}
        children = Path(f"/proc/{self._server.pid}/task/{self._server.pid}/children").read_text()
        self.pids = {"grpc": self._server.pid, "worker": int(children.split()[0])}

    def run(self, work: Work) -> Outcome:
        """Does the work."""
        if isinstance(work, Scoring):
            return self._score(work)
        if isinstance(work, Sampling):
            return self._sample(work)
        return self._mixed(work)

    def close(self) -> None:
        """Ends the server."""
        self._client.close()
        self._server.terminate()
        self._server.wait(60)

    def _score(self, work: Scoring) -> Outcome:
        began = time.perf_counter()
        latencies: list[float] = []
        sums: dict[tuple[int, int], float] = {}
        calls = (
            self._client.topk_logprobs_iter(work.groups, work.k)
            if work.k
            else self._client.score_iter(work.groups)
        )
        for result in calls:
            latencies.append(time.perf_counter() - began)
            sums[result.group_index, result.completion_index] = float(np.sum(result.logprobs))
        ordered = [sums[key] for key in sorted(sums)]
        seconds = time.perf_counter() - began
        return Outcome(seconds, latencies, ordered, self._client.call.usage.cached_tokens)

    def _sample(self, work: Sampling) -> Outcome:
        began = time.perf_counter()
        latencies = []
        samples = self._client.sample_iter(
            work.prompts,
            max_tokens=work.max_tokens,
            top_k=work.top_k,
            top_p=work.top_p,
            ignore_eos=True,
        )
        for sample in samples:
            assert len(sample.token_ids) == work.max_tokens
            latencies.append(time.perf_counter() - began)
        seconds = time.perf_counter() - began
        return Outcome(seconds, latencies, cached_tokens=self._client.call.usage.cached_tokens)

    def _mixed(self, work: Mixed) -> Outcome:
        """Scores group by group while samples are drawn; latencies are between sampled slices."""
        gaps: list[float] = []
        stop = threading.Event()
        died: list[Exception] = []
        sampling = work.sampling

        def sample() -> None:
            while not stop.is_set():
                last = time.perf_counter()
                slices = self._client.sample_slices(
                    sampling.prompts,
                    max_tokens=sampling.max_tokens,
                    top_k=sampling.top_k,
                    top_p=sampling.top_p,
                    ignore_eos=True,
                )
                for piece in slices:
                    now = time.perf_counter()
                    gaps.append((now - last) / max(1, len(piece.token_ids)))
                    last = now
                    if stop.is_set():
                        slices.close()
                        break

        def sample_or_tell() -> None:
            try:
                sample()
            except Exception as error:  # noqa: BLE001 - told below: nothing is mixed without it
                died.append(error)

        sampler = threading.Thread(target=sample_or_tell)
        sampler.start()
        cached = 0
        began = time.perf_counter()
        try:
            for group in work.scoring.groups:
                cached += self._client.score([group]).usage.cached_tokens
            seconds = time.perf_counter() - began
        finally:
            stop.set()
            sampler.join()
        if died:
            raise RuntimeError("samples ended while texts were scored") from died[0]
        return Outcome(seconds, gaps, cached_tokens=cached)

    def _await_address(self) -> str:
        assert self._server.stdout is not None
        for line in self._server.stdout:
            if found := re.match(r"Ready on (\S+?:\d+)", line):
                threading.Thread(target=self._server.stdout.read, daemon=True).start()
                return found[1]
        raise RuntimeError(f"the server ended with {self._server.wait()}")


def make(config: SideConfig) -> Service:
    """Starts it."""
    return Service(config)
