"""From a trainer's tensors to committed weights: GB/s, and the pause that scoring calls see.

`python -m benchmarks.weights --model build/models/smollm2` measures from the machine's limits down:
a copy, SHA-256, bare gRPC streams of 2 MiB messages, the client against a server that discards what
it gets, and the whole way to a real server that goes on scoring meanwhile.
"""

from __future__ import annotations

import argparse
import json
import statistics
from pathlib import Path
from typing import Any

from benchmarks.machine import describe, origin
from benchmarks.weights.client_alone import client_alone
from benchmarks.weights.limits import limits
from benchmarks.weights.tensors import bytes_of, trainer_tensors
from benchmarks.weights.whole_way import whole_way


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
    tensors = trainer_tensors(arguments.model)
    found: dict[str, Any] = {
        **origin(),
        "machine": describe(),
        "repetitions": arguments.repetitions,
        "bytes": bytes_of(tensors),
    }
    parts = {
        "limits": lambda: limits(tensors, found["bytes"]),
        "client": lambda: client_alone(tensors, arguments.repetitions),
        "server": lambda: whole_way(tensors, arguments),
    }
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    for name, measure in parts.items():
        if arguments.only in (None, name):
            found[name] = measure()
            # After every part: nothing is lost by a stop.
            arguments.out.write_text(json.dumps(found, indent=1) + "\n")
    _print(found)


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
