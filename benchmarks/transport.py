"""What it costs that workers are processes of their own: results of 100 MB, with and without.

`python -m benchmarks.transport` asks servers for the same amount of results, in turns. One has its
worker in a thread of its own process, where results need no transport; the next has it in a process
of its own, as `serve` has; neither of the two computes anything, and their difference is the
transport: pickling, the socket pair, the thread that receives. The third computes the results, with
the packaged model, which is as fast as models get. Beside them stand the socket pair alone and
numpy's own copy of as many bytes.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import multiprocessing
import queue
import socket
import statistics
import threading
import time
from contextlib import ExitStack
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.children import child
from benchmarks.machine import cpu_seconds, describe, origin
from benchmarks.wire import ReadyExecutor

ROWS, K = 12_500, 1000
"""8 bytes an entry: 100 MB."""

COMPLETIONS = 4
"""That share the rows where they are computed: the packaged model's sequences are short."""

SIDES = ("own process", "server's process", "own process, computed")


def main() -> None:
    """Measures both, prints a table, writes JSON."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.transport")
    parser.add_argument("--repetitions", type=int, default=15)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/transport.json"))
    arguments = parser.parse_args()
    with ExitStack() as stack:
        servers = {}
        for name in SIDES:
            process, pipe = stack.enter_context(child(_serve, name))
            servers[name] = (process, pipe, pipe.recv())
        found = _measure(servers, arguments.repetitions)
        for process, pipe, _ in servers.values():
            pipe.send("end")
            process.join(30)
    found["socket_pair"] = _socket_pair(arguments.repetitions)
    found["copy_seconds"] = _copy(arguments.repetitions)
    report = {
        **origin(),
        "machine": describe(),
        "repetitions": arguments.repetitions,
        **found,
    }
    arguments.out.write_text(json.dumps(report, indent=1) + "\n")
    print("| worker | s a call, client to arrays | s of the server's process |")
    print("|---|---|---|")
    for name in servers:
        times, busy = found[name]["seconds"], found[name]["server_seconds"]
        print(f"| {name} | {statistics.median(times):.3f} | {statistics.median(busy):.3f} |")
    pair, computed = found["socket_pair"], statistics.median(found[SIDES[2]]["seconds"])
    print(
        f"socket pair alone: {pair['seconds']:.3f} s, {100 * pair['seconds'] / computed:.1f} % of "
        f"the computed call; numpy's copy {found['copy_seconds']:.3f} s"
    )


def _measure(servers: dict[str, Any], repetitions: int) -> dict[str, Any]:
    from scoring_client import ScoringClient

    found: dict[str, Any] = {name: {"seconds": [], "server_seconds": []} for name in servers}
    for repetition in range(repetitions + 1):
        names = list(servers) if repetition % 2 else list(reversed(servers))
        for name in names:
            process, _, port = servers[name]
            with ScoringClient(f"localhost:{port}") as client:
                before, began = cpu_seconds(process.pid), time.perf_counter()
                parts = COMPLETIONS if name == SIDES[2] else 1
                # Other tokens each time: a prefix cache knows nothing of them.
                completion = [repetition] * (ROWS // parts)
                results = client.topk_logprobs([([1], [completion] * parts)], K)[0]
                elapsed = time.perf_counter() - began
            if sum(result.top_logprobs.size for result in results) != ROWS * K:
                raise RuntimeError("an answer of another size")
            if repetition:
                found[name]["seconds"].append(elapsed)
                found[name]["server_seconds"].append(cpu_seconds(process.pid) - before)
    found["bytes"] = 8 * ROWS * K
    return found


def _socket_pair(repetitions: int) -> dict[str, Any]:
    """The same slices from one process to another, and nothing else: medians, and every time."""
    from scoring_service.allocator import keep_freed_memory
    from scoring_service.engine.worker.channel import Channel

    keep_freed_memory()
    context = multiprocessing.get_context("spawn")
    seconds, busy = [], []
    for _ in range(repetitions):
        ours, theirs = socket.socketpair()
        process = context.Process(target=_send_slices, args=(theirs,))
        channel = Channel(ours)
        process.start()
        theirs.close()
        channel.receive()  # it has started
        began, before = time.perf_counter(), time.process_time()
        while channel.receive() is not None:
            pass
        seconds.append(time.perf_counter() - began)
        busy.append(time.process_time() - before)
        process.join()
        channel.close()
    return {
        "seconds": statistics.median(seconds),
        "receiver_seconds": statistics.median(busy),
        "times": seconds,
        "receiver_times": busy,
    }


def _send_slices(end: Any) -> None:
    from benchmarks.wire import slices
    from scoring_service.engine.worker.channel import Channel

    channel = Channel(end)
    prepared = list(slices(1, ROWS, K))
    channel.send("started")
    for piece in prepared:
        channel.send(piece)
    channel.send(None)


def _copy(repetitions: int) -> float:
    source = np.ones(8 * ROWS * K, dtype=np.uint8)
    seconds = []
    for _ in range(repetitions):
        began = time.perf_counter()
        source.copy()
        seconds.append(time.perf_counter() - began)
    return statistics.median(seconds)


class ReadyThread(ReadyExecutor):
    """Answers from a thread, as a worker's results come from the thread that receives them."""

    def __init__(self) -> None:
        self._commands: queue.SimpleQueue[Any] = queue.SimpleQueue()
        threading.Thread(target=self._answer, daemon=True).start()

    def send(self, command: Any) -> None:
        """Leaves a command to the thread."""
        self._commands.put(command)

    def _answer(self) -> None:
        while True:
            super().send(self._commands.get())


def _serve(pipe: Connection, side: str) -> None:
    asyncio.run(_run_server(pipe, side))


async def _run_server(pipe: Connection, side: str) -> None:
    from benchmarks.local_server import pool_of, start_server
    from scoring_service.allocator import keep_freed_memory
    from scoring_service.models import tiny_model_path
    from scoring_service.pool.workers import process
    from scoring_service.telemetry.logs import configure_logs
    from scoring_service.types import EngineConfig

    keep_freed_memory()
    configure_logs("warning", "json")
    if side == SIDES[0]:
        process.WORKER_MODULE = "benchmarks.ready_worker"

    def make(_index: int) -> Any:
        config = EngineConfig(str(tiny_model_path()))
        return ReadyThread() if side == SIDES[1] else process.ProcessExecutor(config)

    server = await start_server(pool_of(make, heartbeat_timeout=1e6))
    pipe.send(server.port)
    await asyncio.to_thread(pipe.recv)
    await server.drain()


if __name__ == "__main__":
    main()
