"""What telemetry costs: the same calls with all of it and with none, in turns.

`python -m benchmarks.telemetry_cost` starts a server of the packaged model whose telemetry can be
switched. On, it keeps metrics, makes a span and its children of as many calls as a server does
(ten a second; `--traces-per-second`), exports them as JSON in batches, and writes a line of log a
call; off, it does nothing of the kind. Somebody reads the metrics every five seconds. Rounds of
calls alternate, in an order that cancels a drift of the machine (on off off on …), and the cost is
the median of the ratios of neighbours.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import statistics
import sys
import time
import urllib.request
from contextlib import redirect_stderr, suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import grpc

from benchmarks.children import child
from benchmarks.machine import cpu_seconds, describe, origin
from scoring_client.proto import score_pb2, sequence_pb2, service_pb2_grpc
from scoring_service.config import ServeConfig

_SCRAPE_SECONDS = 5.0


@dataclass(frozen=True)
class Workload:
    """Calls that are all alike."""

    prompt: int
    completions: int
    length: int
    at_once: int
    share: float = 1.0
    """Of the rounds."""

    def request(self, number: int) -> score_pb2.ScoreRequest:
        """One that no prefix cache knows."""
        first = [2 + number % 2000, 2 + number // 2000 % 2000]
        completion = sequence_pb2.Completion(token_ids=[7] * self.length)
        group = sequence_pb2.PromptGroup(
            prompt=sequence_pb2.TokenSequence(token_ids=[*first, *[5] * (self.prompt - 2)]),
            completions=[completion] * self.completions,
        )
        return score_pb2.ScoreRequest(groups=[group])


WORKLOADS = {
    "groups (16 x 64 after 128)": Workload(128, 16, 64, at_once=4),
    "one token a call, the worst case": Workload(8, 1, 1, at_once=8, share=1 / 4),
}


SIDES = ("on", "off")


@dataclass(frozen=True)
class Switched:
    """A server, and the way to switch its telemetry."""

    port: int
    pid: int
    pipe: Connection

    def switch(self, side: str) -> None:
        """Returns once it is so."""
        self.pipe.send(side)
        self.pipe.recv()


def main() -> None:
    """Measures every workload, prints a table, writes JSON."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.telemetry_cost")
    parser.add_argument("--rounds", type=int, default=18, help="of each side and workload")
    parser.add_argument("--seconds", type=float, default=2.5, help="of a round")
    parser.add_argument(
        "--traces-per-second", type=float, default=ServeConfig().traces_per_second, help="inf = all"
    )
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/telemetry.json"))
    arguments = parser.parse_args()
    found = {}
    with child(_serve, arguments.traces_per_second) as (process, pipe):
        server = Switched(pipe.recv(), process.pid or 0, pipe)
        for name, workload in WORKLOADS.items():
            found[name] = asyncio.run(
                _measure(server, workload, arguments.rounds, arguments.seconds)
            )
        pipe.send("end")
        process.join(30)
    report = {**origin(), "machine": describe(), "repetitions": arguments.rounds, **found}
    arguments.out.write_text(json.dumps(report, indent=1) + "\n")
    print("| calls | calls/s on | calls/s off | ratio (quartiles) | server's ms a call on | off |")
    print("|---|---|---|---|---|---|")
    for name, result in found.items():
        on, off = result["on"], result["off"]
        print(
            f"| {name} | {on['calls_per_second']:.1f} | {off['calls_per_second']:.1f} "
            f"| {result['throughput_ratio']:.3f} "
            f"({', '.join(f'{quartile:.3f}' for quartile in result['quartiles'])}) "
            f"| {on['server_ms_per_call']:.3f} | {off['server_ms_per_call']:.3f} |"
        )


async def _measure(
    server: Switched, workload: Workload, rounds: int, seconds: float
) -> dict[str, Any]:
    rates: dict[str, list[float]] = {side: [] for side in SIDES}
    busy: dict[str, list[float]] = {side: [] for side in SIDES}
    number = 0
    for turn in range(round(rounds * workload.share) + 1):
        for side in SIDES if turn % 2 else reversed(SIDES):
            server.switch(side)
            began, before = time.monotonic(), cpu_seconds(server.pid)
            calls = await _round(server.port, workload, seconds, number)
            number += calls
            if turn:
                rates[side].append(calls / (time.monotonic() - began))
                busy[side].append(1e3 * (cpu_seconds(server.pid) - before) / calls)
    ratios = [on / off for on, off in zip(rates["on"], rates["off"], strict=True)]
    low, middle, high = statistics.quantiles(ratios, n=4, method="inclusive")
    result: dict[str, Any] = {"throughput_ratio": middle, "quartiles": [low, high]}
    for side in SIDES:
        result[side] = {
            "calls_per_second": statistics.median(rates[side]),
            "server_ms_per_call": statistics.median(busy[side]),
            "rounds": [round(rate, 2) for rate in rates[side]],
        }
    return result


async def _round(port: int, workload: Workload, seconds: float, first: int) -> int:
    """Calls at once, one after another, for so long; how many."""
    calls = 0
    until = time.monotonic() + seconds

    async def one(stub: Any) -> None:
        nonlocal calls
        while time.monotonic() < until:
            calls += 1
            async for _ in stub.Score(workload.request(first + calls), timeout=60):
                pass

    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        stub = service_pb2_grpc.ScoringServiceStub(channel)
        await asyncio.gather(*(one(stub) for _ in range(workload.at_once)))
    return calls


def _serve(pipe: Connection, traces_per_second: float) -> None:
    # The log goes where a log collector would take it from, at no cost of its own.
    with Path(os.devnull).open("w") as nowhere, redirect_stderr(nowhere):
        asyncio.run(_run_server(pipe, traces_per_second))


async def _run_server(pipe: Connection, traces_per_second: float) -> None:
    import structlog

    from benchmarks.local_server import pool_of, start_server
    from scoring_service.models import tiny_model_path
    from scoring_service.pool.workers.process import ProcessExecutor
    from scoring_service.telemetry.logs import configure_logs
    from scoring_service.types import EngineConfig

    switch = Switch()
    configure_logs("info", "json")
    structlog.get_config()["processors"].insert(0, switch.drop)
    telemetry = _switched(switch, traces_per_second)
    engine = EngineConfig(str(tiny_model_path()), threads=1)
    pool = pool_of(lambda _index: ProcessExecutor(engine), telemetry.metrics)
    server = await start_server(pool, telemetry)
    telemetry.metrics.watch(pool)
    scraping = asyncio.create_task(_scrape(telemetry.metrics.serve("127.0.0.1", 0)))
    pipe.send(server.port)
    while (side := await asyncio.to_thread(pipe.recv)) != "end":
        switch.on = side == "on"
        pipe.send(side)
    scraping.cancel()
    await server.drain()
    telemetry.traces.shutdown()


class Switch:
    """Whether there is telemetry."""

    on = True

    def drop(self, _logger: Any, _method: str, event: dict[str, Any]) -> dict[str, Any]:
        """A processor of structlog that lets no line through while there is none."""
        import structlog

        if not self.on:
            raise structlog.DropEvent
        return event


def _switched(switch: Switch, traces_per_second: float) -> Any:
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor, ConsoleSpanExporter

    from scoring_service.telemetry.metrics import Metrics
    from scoring_service.telemetry.telemetry import Telemetry
    from scoring_service.telemetry.traces import OtelTraces, Traces, limit_of

    exporter = ConsoleSpanExporter(out=sys.stderr, formatter=lambda span: span.to_json(indent=None))
    provider = TracerProvider()
    provider.add_span_processor(BatchSpanProcessor(exporter))
    nothing = Traces()

    class SwitchedTraces(OtelTraces):
        def call(self, name: str, metadata: Any) -> Any:
            return super().call(name, metadata) if switch.on else nothing.call(name, metadata)

    class SwitchedMetrics(Metrics):
        def rpc_started(self, *labels: str) -> None:
            if switch.on:
                super().rpc_started(*labels)

        def rpc_handled(self, *arguments: Any) -> None:
            if switch.on:
                super().rpc_handled(*arguments)

        def answered(self, *arguments: Any) -> None:
            if switch.on:
                super().answered(*arguments)

    traces = SwitchedTraces(provider, limit_of(traces_per_second))
    return Telemetry(SwitchedMetrics("team"), traces)


async def _scrape(port: int) -> None:
    def read() -> None:
        with suppress(OSError), urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics") as got:
            got.read()

    while True:
        await asyncio.sleep(_SCRAPE_SECONDS)
        await asyncio.to_thread(read)


if __name__ == "__main__":
    main()
