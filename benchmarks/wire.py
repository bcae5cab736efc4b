"""The wire alone: results of given shapes from a worker that computes nothing to numpy arrays.

`python -m benchmarks.wire` starts the real server with an executor whose slices are ready, and the
real client. So what is measured is encoding, gRPC over loopback, decoding and assembly, in two
processes, against numpy's own copy of the same bytes.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import time
from collections.abc import Iterator
from functools import lru_cache
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from benchmarks.children import child
from benchmarks.machine import describe, origin

if TYPE_CHECKING:
    from scoring_service.engine.events import ScoreSlice

SHAPES = {"4096 x 128": (4096, 128), "32768 x 64": (32_768, 64)}
_SLICE_BYTES = 1 << 19


def main() -> None:
    """Measures every shape, prints a table, writes JSON."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.wire", description=__doc__)
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/wire.json"))
    arguments = parser.parse_args()
    with child(_serve) as (_, pipe):
        port = pipe.recv()
        found = {
            name: _measure(port, rows, k, arguments.repetitions)
            for name, (rows, k) in SHAPES.items()
        }
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    told = {
        **origin(),
        "machine": describe(),
        "repetitions": arguments.repetitions,
        "shapes": found,
    }
    arguments.out.write_text(json.dumps(told, indent=1) + "\n")
    print(
        "| rows x K | MB | to numpy, s (min-max) | MB/s | numpy's copy, s |\n|---|---|---|---|---|"
    )
    for name, result in found.items():
        seconds = result["seconds"]
        median = statistics.median(seconds)
        size = result["bytes"] / 1e6
        print(
            f"| {name} | {size:.1f} | {median:.3f} ({min(seconds):.3f}-{max(seconds):.3f}) "
            f"| {size / median:,.0f} | {result['copy_seconds']:.4f} |"
        )


def _measure(port: int, rows: int, k: int, repetitions: int) -> dict:
    from scoring_client import ScoringClient

    seconds = []
    size = 0
    with ScoringClient(f"localhost:{port}") as client:
        for repetition in range(repetitions + 1):
            began = time.perf_counter()
            result = client.topk_logprobs([([1], [[0] * rows])], k)[0][0]
            elapsed = time.perf_counter() - began
            assert result.top_logprobs.shape == (rows, k)
            size = result.top_logprobs.nbytes + result.top_token_ids.nbytes
            if repetition:
                seconds.append(elapsed)
    source = np.ones(size, dtype=np.uint8)
    began = time.perf_counter()
    source.copy()
    return {"bytes": size, "seconds": seconds, "copy_seconds": time.perf_counter() - began}


def _serve(pipe: Connection) -> None:
    asyncio.run(_run_server(pipe))


async def _run_server(pipe: Connection) -> None:
    from benchmarks.local_server import pool_of, start_server

    server = await start_server(pool_of(lambda _index: ReadyExecutor()))
    pipe.send(server.port)
    await asyncio.Event().wait()


class ReadyExecutor:
    """Answers each call at once, with slices of random numbers."""

    def start(self, on_event) -> None:
        """Says that it is ready."""
        from scoring_service.engine.events import Ready
        from scoring_service.types import EngineInfo

        self._on_event = on_event
        info = EngineInfo(
            architecture="none",
            vocab_size=1 << 17,
            parameter_count=0,
            max_sequence_tokens=1 << 20,
            weight_version=0,
            weights_digest="",
            dtype="none",
            residual_dtype="none",
            head_dtype="none",
            backend="none",
            device="none",
            deterministic=True,
            numerics_id="",
            packed=False,
            path_reason="",
            chunk_size=0,
            eos_token_ids=(),
        )
        on_event(Ready(info))

    def send(self, command) -> None:
        """Answers a call; credit and cancellation mean nothing to it."""
        from scoring_service.engine.events import CallFinished, Submit
        from scoring_service.types import Usage

        if not isinstance(command, Submit):
            return
        call = command.call
        rows = len(call.groups[0].completions[0].token_ids)
        for piece in slices(call.call_id, rows, call.wants.top_k):
            self._on_event(piece)
        self._on_event(CallFinished(call.call_id, Usage()))

    def kill(self) -> None:
        """Nothing to end."""

    def stop(self, timeout: float) -> None:
        """Nothing to end."""


def slices(call_id: int, total: int, k: int) -> Iterator[ScoreSlice]:
    """The rows of one completion, with lists of k."""
    from scoring_service.engine.events import ScoreSlice
    from scoring_service.types import RowBlock

    step = max(1, _SLICE_BYTES // (8 * k))
    ids, values = _numbers(total, k)
    for start in range(0, total, step):
        rows = min(step, total - start)
        here = slice(start, start + rows)
        block = RowBlock(
            rows=rows,
            logprobs=np.zeros(rows, dtype=np.float32),
            support_sizes=np.ones(rows, dtype=np.int32),
            top_token_ids=ids[here],
            top_logprobs=values[here],
            log_tail_masses=np.zeros(rows, dtype=np.float32),
        )
        last = start + rows == total
        yield ScoreSlice(call_id, 0, 0, 0, 1, start, block, last, 0, 8 * rows * k)


@lru_cache
def _numbers(rows: int, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Ids and log-probs of every row, made once: no slice is in a cache from the one before."""
    rng = np.random.default_rng(0)
    ids = rng.integers(0, 1 << 17, (rows, k), dtype=np.int32)
    return ids, rng.standard_normal((rows, k), dtype=np.float32)


if __name__ == "__main__":
    main()
