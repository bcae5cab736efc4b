"""`python -m benchmarks.cpu_profile`: what a workload's time goes to on a CPU, in two minutes.

Runs workloads through the engine by turns without and with Python's profiler, which sees every
function and operator that is called. What it costs stands in the result (`profiler_costs`): little
where operators take milliseconds, more in the small steps of few samples, whose rest it inflates.
Leaves `cpu-profile.json`.
"""

from __future__ import annotations

import argparse
import cProfile
import json
import pstats
import statistics
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from benchmarks.machine import describe, origin
from benchmarks.side_process import ROOT
from benchmarks.sides import SideConfig
from benchmarks.sides.engine import Engine
from benchmarks.workloads import build

PARTS = {
    "products of the body": [("engine/fused/prepacked.py", "_forward")],
    "attention": [("engine/attention/attention.py", "packed_attention")],
    "norms, gates, rotation, sums": [
        ("kernels/cpu/body.py", name) for name in ("norm", "add_rows", "gate", "rotate")
    ],
    "product of the head": [("engine/head/product.py", "multiply")],
    "numbers of logits": [
        ("engine/outputs/rows.py", "begin_rows"),
        ("engine/outputs/draws.py", "begin_draw"),
    ],
}
"""Functions, by the ends of their files' names; none of them is called by another one."""

REST = "all else"
"""Scheduling, results, transformers' own Python, and the profiler."""


def main() -> None:
    """Profiles and writes."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.cpu_profile", description=__doc__)
    parser.add_argument("--model", required=True, help="folder in the Hugging Face layout")
    parser.add_argument("--workloads", default="grpo,flat,topk-20,topk-1024,sample-1,sample-16")
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--head-dtype", default="bfloat16")
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results")
    arguments = parser.parse_args()
    vocab = json.loads((Path(arguments.model) / "config.json").read_text())["vocab_size"]
    config = SideConfig(arguments.model, arguments.dtype, arguments.head_dtype, "cpu", None)
    engine = Engine(config)
    report: dict[str, Any] = {**origin(), "machine": describe(), **engine.backend, "workloads": {}}
    for name in arguments.workloads.split(","):
        found = profiled(engine, name, vocab, arguments.repetitions)
        report["workloads"][name] = found
        shares = ", ".join(f"{part} {share:.0%}" for part, share in found["shares"].items())
        print(f"{name}: {shares}; with the profiler {found['profiler_costs']:.2f}", flush=True)
    arguments.out.mkdir(parents=True, exist_ok=True)
    (arguments.out / "cpu-profile.json").write_text(json.dumps(report, indent=1) + "\n")


def profiled(engine: Engine, name: str, vocab: int, repetitions: int) -> dict[str, Any]:
    """A workload's shares of time, and its seconds without and with the profiler."""
    engine.run(build(name, "small", vocab, 0))
    seconds: dict[str, list[float]] = {"without": [], "with": []}
    profiler = cProfile.Profile()
    for repetition in range(1, repetitions + 1):
        seconds["without"].append(engine.run(build(name, "small", vocab, 2 * repetition)).seconds)
        work = build(name, "small", vocab, 2 * repetition + 1)
        profiler.enable()
        outcome = engine.run(work)
        profiler.disable()
        seconds["with"].append(outcome.seconds)
    without, under = (statistics.median(found) for found in seconds.values())
    return {
        "seconds": seconds,
        "profiler_costs": under / without,
        "shares": shares(profiler, sum(seconds["with"])),
    }


def shares(profiler: cProfile.Profile, seconds: float) -> dict[str, float]:
    """Of so many seconds, what went to each part."""
    found = pstats.Stats(profiler).stats  # type: ignore[attr-defined]
    parts = {part: _seconds(found, functions) / seconds for part, functions in PARTS.items()}
    return {**parts, REST: 1.0 - sum(parts.values())}


def _seconds(
    found: dict[tuple[str, int, str], tuple[Any, ...]], functions: Iterable[tuple[str, str]]
) -> float:
    """Of functions, with whatever they call."""
    return sum(
        entry[3]
        for (file, _, name), entry in found.items()
        if any(file.endswith(end) and name == function for end, function in functions)
    )


if __name__ == "__main__":
    main()
