"""From a trainer's tensors to committed weights: GB/s, and the pause that scoring calls see.

`python -m benchmarks.weights --model build/models/smollm2` measures from the machine's limits down:
a copy, SHA-256, bare gRPC streams of 2 MiB messages, the client against a server that discards what
it gets, and the whole way to a real server that goes on scoring meanwhile.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import json
import multiprocessing
import os
import resource
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from concurrent import futures
from contextlib import contextmanager
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import grpc
import torch

from benchmarks.machine import copy_rate, cpu_seconds, describe, origin
from scoring_client import AdminClient, ScoringClient
from scoring_client.proto import admin_pb2, admin_pb2_grpc, weights_pb2

_SPAWN = multiprocessing.get_context("spawn")
_MESSAGE_BYTES = 2 << 20
_PROMPT, _COMPLETIONS = list(range(40, 72)), [list(range(100, 116))]
"""A call small enough that its latency shows a pause of milliseconds."""


def main() -> None:
    """Measures, prints a table, writes JSON."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.weights", description=__doc__)
    parser.add_argument("--model", type=Path, default=Path("build/models/smollm2"))
    parser.add_argument("--repetitions", type=int, default=7)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=8.0, help="of scoring without updates")
    parser.add_argument("--only", choices=("limits", "client", "server"), default=None)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/weights.json"))
    arguments = parser.parse_args()
    tensors = _trainer_tensors(arguments.model)
    found: dict[str, Any] = {
        **origin(),
        "machine": describe(),
        "repetitions": arguments.repetitions,
        "bytes": _bytes(tensors),
    }
    parts = {
        "limits": lambda: _limits(tensors, found["bytes"]),
        "client": lambda: _client_alone(tensors, arguments.repetitions),
        "server": lambda: _whole_way(tensors, arguments),
    }
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    for name, measure in parts.items():
        if arguments.only in (None, name):
            found[name] = measure()
            # After every part: nothing is lost by a stop.
            arguments.out.write_text(json.dumps(found, indent=1) + "\n")
    _print(found)


def _trainer_tensors(model: Path) -> dict[str, torch.Tensor]:
    """The model's own state_dict, in bfloat16: what a trainer holds."""
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(model, dtype=torch.bfloat16).state_dict()


def _masters(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The same in float32, tied as they were: what an optimizer steps on."""
    wide = {tensor.data_ptr(): tensor.float() for tensor in tensors.values()}
    return {name: wide[tensor.data_ptr()] for name, tensor in tensors.items()}


def _bytes(tensors: dict[str, torch.Tensor]) -> int:
    """Of all tensors, tied ones counted once."""
    distinct = {tensor.data_ptr(): tensor for tensor in tensors.values()}
    return sum(tensor.numel() * tensor.element_size() for tensor in distinct.values())


# The machine's limits


def _limits(tensors: dict[str, torch.Tensor], total: int) -> dict[str, Any]:
    largest = max(tensors.values(), key=torch.Tensor.numel)
    view = memoryview(largest.view(torch.uint8).numpy()).cast("B")
    began = time.perf_counter()
    hashlib.sha256(view).digest()
    sha256 = len(view) / (time.perf_counter() - began) / 1e9
    return {
        "copy_gb_per_second": copy_rate() / 2e9,
        "sha256_gb_per_second": sha256,
        "bare_grpc_gb_per_second": {
            client: _bare_stream(client, total) for client in ("sync", "aio")
        },
    }


def _bare_stream(kind: str, total: int) -> list[float]:
    """GB/s of 2 MiB messages from one process to an asyncio server in another."""
    count = total // _MESSAGE_BYTES
    source = memoryview(bytearray(_MESSAGE_BYTES))
    rates = []
    with _serving(_discard_bytes) as port:
        for _ in range(4):
            began = time.perf_counter()
            if kind == "sync":
                _send_sync(port, source, count)
            else:
                asyncio.run(_send_aio(port, source, count))
            rates.append(count * _MESSAGE_BYTES / (time.perf_counter() - began) / 1e9)
    return rates[1:]


def _send_sync(port: int, source: memoryview, count: int) -> None:
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        channel.stream_unary("/bare.Sink/Put")(bytes(source) for _ in range(count))


async def _send_aio(port: int, source: memoryview, count: int) -> None:
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        call = channel.stream_unary("/bare.Sink/Put")()
        for _ in range(count):
            await call.write(bytes(source))
        await call.done_writing()
        await call


def _discard_bytes(pipe: Connection) -> None:
    asyncio.run(_run_sink(pipe))


async def _run_sink(pipe: Connection) -> None:
    async def put(messages: Any, context: Any) -> bytes:
        async for _ in messages:
            pass
        return b""

    server = grpc.aio.server()
    handler = grpc.stream_unary_rpc_method_handler(put)
    server.add_generic_rpc_handlers(
        (grpc.method_handlers_generic_handler("bare.Sink", {"Put": handler}),)
    )
    pipe.send(server.add_insecure_port("127.0.0.1:0"))
    await server.start()
    await asyncio.Event().wait()


@contextmanager
def _serving(target: Callable[..., None], *arguments: Any) -> Iterator[Any]:
    """A server in a process of its own; what it sent first."""
    with _process(target, *arguments) as pipe:
        yield pipe.recv()


@contextmanager
def _process(target: Callable[..., None], *arguments: Any) -> Iterator[Connection]:
    """A process of its own; the other end of its first argument, where nothing comes once it died.

    Reading that end then raises EOFError.
    """
    ours, theirs = _SPAWN.Pipe()
    process = _SPAWN.Process(target=target, args=(theirs, *arguments), daemon=True)
    process.start()
    theirs.close()  # else its end would stay open here, whatever became of the process
    try:
        yield ours
    finally:
        process.terminate()
        process.join()


# The client by itself


def _client_alone(tensors: dict[str, torch.Tensor], repetitions: int) -> dict[str, Any]:
    """GB/s of `push_weights` to a server that discards messages unread."""
    specs = [(name, tuple(tensor.shape)) for name, tensor in sorted(tensors.items())]
    found: dict[str, Any] = {}
    with _serving(_discard_weights, specs) as port, AdminClient(f"127.0.0.1:{port}") as client:
        total = _bytes(tensors)
        for name, given, options in (
            ("plain", tensors, {}),
            ("with digest", tensors, {"digest": True}),
            ("float32 converted here", _masters(tensors), {"convert_dtypes": True}),
        ):
            found[name] = _rates(client, given, total, repetitions, options)
    return found


def _rates(
    client: AdminClient, tensors: Any, total: int, repetitions: int, options: Any
) -> dict[str, Any]:
    """GB/s of what is sent, `total` bytes."""
    rates, processor, faults = [], [], []
    for repetition in range(repetitions + 1):
        touched = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        cpu, began = time.process_time(), time.perf_counter()
        client.push_weights(tensors, version=1, **options)
        if repetition:
            rates.append(total / (time.perf_counter() - began) / 1e9)
            processor.append((time.process_time() - cpu) / (total / 1e9))
            faults.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - touched)
    return {
        "gb_per_second": rates,
        "processor_seconds_per_gb": processor,
        "page_faults": faults,
    }


class _Discarding(admin_pb2_grpc.AdminServiceServicer):
    def __init__(self, specs: list[tuple[str, tuple[int, ...]]]) -> None:
        self._specs = specs

    def GetWeights(self, request: Any, context: Any) -> Any:  # noqa: N802
        answer = admin_pb2.GetWeightsResponse()
        first = "model.embed_tokens.weight"
        for name, shape in self._specs:
            tied = first if name == "lm_head.weight" else ""
            answer.tensors.add(
                name=name, dtype="WEIGHT_DATA_TYPE_BFLOAT16", shape=shape, tied_to=tied
            )
        return answer


def _discard_weights(pipe: Connection, specs: Any) -> None:
    def push(messages: Iterator[bytes], context: Any) -> Iterator[Any]:
        for _ in messages:
            pass
        status = weights_pb2.WeightUpdateStatus(phase="WEIGHT_UPDATE_PHASE_COMMITTED")
        yield admin_pb2.PushWeightsResponse(status=status)

    server = grpc.server(futures.ThreadPoolExecutor(4))
    servicer = _Discarding(specs)
    admin_pb2_grpc.add_AdminServiceServicer_to_server(servicer, server)
    raw = grpc.stream_stream_rpc_method_handler(
        push, response_serializer=admin_pb2.PushWeightsResponse.SerializeToString
    )
    get = grpc.unary_unary_rpc_method_handler(
        servicer.GetWeights,
        admin_pb2.GetWeightsRequest.FromString,
        admin_pb2.GetWeightsResponse.SerializeToString,
    )
    handlers = {"PushWeights": raw, "GetWeights": get}
    server.add_registered_method_handlers("scoring.v1.AdminService", handlers)
    pipe.send(server.add_insecure_port("127.0.0.1:0"))
    server.start()
    server.wait_for_termination()


# The whole way


def _whole_way(tensors: dict[str, torch.Tensor], arguments: argparse.Namespace) -> dict[str, Any]:
    log = Path("build/benchmark-weights.log")
    log.parent.mkdir(exist_ok=True)
    with _real_server(arguments, log) as (target, pid), AdminClient(target) as admin:
        workers = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        pids = {"server": [pid], "workers": [int(worker) for worker in workers]}
        total, repetitions = _bytes(tensors), arguments.repetitions
        idle = _pushes(admin, tensors, total, pids, repetitions, first_version=1)
        masters = _masters(tensors)
        converted = _pushes(admin, masters, total, pids, repetitions, first_version=50)
        with _scoring(target) as latencies:
            time.sleep(arguments.seconds)
            quiet_end = time.monotonic()
            busy = _pushes(admin, tensors, total, pids, repetitions, first_version=100, pause=0.5)
            calls = latencies()
    return {
        "workers": arguments.workers,
        "pushes_idle": idle,
        "pushes_of_float32_idle": converted,
        "pushes_while_scoring": busy,
        "scoring": _pauses(calls, quiet_end, busy),
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
    import subprocess

    command = [Path(sys.executable).parent / "scoring-service", "serve", str(arguments.model)]
    command += ["--port", "0", "--dtype", "bfloat16", "--num-workers", str(arguments.workers)]
    with log.open("w") as output:
        process = subprocess.Popen(command, stdout=output, stderr=output, env=os.environ)
        try:
            yield _ready(log, process), process.pid
        finally:
            process.terminate()
            process.wait(60)


def _ready(log: Path, process: Any) -> str:
    import re

    while process.poll() is None:
        if found := re.search(r"Ready on (\S+?:\d+)", log.read_text()):
            return found[1]
        time.sleep(0.2)
    raise RuntimeError(f"the server ended; see {log}")


@contextmanager
def _scoring(target: str) -> Iterator[Callable[[], list[tuple[float, float, int]]]]:
    """Small calls all the while, from a process of its own; what ends them and tells of each.

    That one raises EOFError or OSError where the process has died.
    """

    def latencies() -> list[tuple[float, float, int]]:
        pipe.send("stop")
        calls: list[tuple[float, float, int]] = pipe.recv()
        return calls

    with _process(_score_all_the_time, target) as pipe:
        pipe.recv()
        yield latencies


def _score_all_the_time(pipe: Connection, target: str) -> None:
    """Small calls one after the other, each with when it began and ended, until told to end."""
    calls = []
    with ScoringClient(target) as client:
        client.score([(_PROMPT, _COMPLETIONS)])
        pipe.send(None)
        while not pipe.poll():
            began = time.monotonic()
            scores = client.score([(_PROMPT, _COMPLETIONS)])[0][0]
            calls.append((began, time.monotonic(), scores.weight_version))
    pipe.send(calls)


def _pauses(calls: Any, quiet_end: float, pushes: Any) -> dict[str, Any]:
    """Latencies without updates and of the calls that met one, and what the worst exceeds usual."""
    quiet = [ended - began for began, ended, _ in calls if ended < quiet_end]
    usual = statistics.median(quiet)
    met = [
        ended - began
        for began, ended, _ in calls
        if any(began < push["ended"] and ended > push["began"] for push in pushes)
    ]
    return {
        "without_update": _summary(quiet),
        "during_updates": _summary(met),
        "longest_pause_seconds": max(met) - usual,
        "versions_seen": len({version for _, _, version in calls}),
    }


def _summary(seconds: list[float]) -> dict[str, float]:
    ordered = sorted(seconds)
    return {
        "calls": len(ordered),
        "p50": ordered[len(ordered) // 2],
        "p99": ordered[min(len(ordered) - 1, int(len(ordered) * 0.99))],
        "longest": ordered[-1],
    }


def _print(found: dict[str, Any]) -> None:
    def show(name: str, rates: list[float]) -> None:
        median = statistics.median(rates)
        print(f"| {name} | {median:.2f} ({min(rates):.2f}-{max(rates):.2f}) |")

    print(f"{found['bytes'] / 1e6:.0f} MB\n\n| | GB/s |\n|---|---|")
    if limits := found.get("limits"):
        show("copy, one thread's and one's", [limits["copy_gb_per_second"]])
        show("SHA-256", [limits["sha256_gb_per_second"]])
        for kind, rates in limits["bare_grpc_gb_per_second"].items():
            show(f"bare gRPC, {kind} client", rates)
    for name, result in found.get("client", {}).items():
        show(f"client alone, {name}", result["gb_per_second"])
    if server := found.get("server"):
        show("to committed weights, idle", [p["gb_per_second"] for p in server["pushes_idle"]])
        wide = [p["gb_per_second"] for p in server["pushes_of_float32_idle"]]
        show("to committed weights, idle, from float32", wide)
        scoring = [p["gb_per_second"] for p in server["pushes_while_scoring"]]
        show("to committed weights, while scoring", scoring)
        print("\n| calls, ms | p50 | p99 | longest |\n|---|---|---|---|")
        for name in ("without_update", "during_updates"):
            row = server["scoring"][name]
            ms = " | ".join(f"{row[key] * 1e3:.1f}" for key in ("p50", "p99", "longest"))
            print(f"| {name} ({row['calls']}) | {ms} |")
        print(f"\nlongest pause: {server['scoring']['longest_pause_seconds'] * 1e3:.0f} ms")


if __name__ == "__main__":
    main()
