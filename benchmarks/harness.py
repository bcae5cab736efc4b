"""Runs every side on every workload in turn, so that the machine's moods meet all of them."""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.limits import Shape, bytes_read, flops
from benchmarks.machine import copy_rate, describe, matrix_rate
from benchmarks.side_process import SideProcess
from benchmarks.workloads import Scoring, build

Say = Callable[[str], None]

_PRODUCT_ROWS = 1024
"""Rows of the products that the machine's matrix rate is measured with."""


def measure(
    sides: list[SideProcess],
    workloads: list[str],
    size: str,
    repetitions: int,
    model: Path,
    dtype: str,
    device: str,
    say: Say,
) -> dict[str, Any]:
    """Everything measured, as plain data: machine, limits, and every repetition of every side."""
    config = json.loads((model / "config.json").read_text())
    shape = Shape.of(config)
    report: dict[str, Any] = {"machine": describe(), "workloads": {}}
    say("the machine's matrix and copy rates")
    rate = matrix_rate(dtype, _PRODUCT_ROWS, shape.hidden, shape.intermediate, device)
    copies = copy_rate(device)
    report["machine"].update(matrix_flops_per_second=rate, copy_bytes_per_second=copies)
    for name in workloads:
        work = build(name, size, shape.vocab)
        width = 4 if dtype == "float32" else 2
        limit = max(flops(shape, work) / rate, bytes_read(shape, work, width) / (copies / 2))
        runs: dict[str, list[dict[str, Any]]] = {side.name: [] for side in sides}
        able = list(sides)
        for repetition in range(repetitions + 1):
            for side in list(able):
                say(f"{name}: {side.name}, repetition {repetition} of {repetitions}")
                outcome = side.run(name, size, shape.vocab)
                if outcome.get("cannot"):
                    able.remove(side)
                elif repetition:  # the first is a warm-up
                    runs[side.name].append(outcome)
        report["workloads"][name] = {
            "tokens": work.tokens,
            "flops": flops(shape, work),
            "limit_seconds": limit,
            "largest_disagreement": _disagreement(runs) if isinstance(work, Scoring) else None,
            "runs": {side: found for side, found in runs.items() if found},
        }
    return report


def median_seconds(runs: list[dict[str, Any]]) -> float:
    """Of the repetitions of one side."""
    return statistics.median(run["seconds"] for run in runs)


def _disagreement(runs: dict[str, list[dict[str, Any]]]) -> float | None:
    """Largest difference between two sides' log-prob of a sequence, per token it cannot know.

    Sides that do not report sums (the bare arithmetic) do not take part.
    """
    sums = [found[0]["logprob_sums"] for found in runs.values() if found]
    sums = [values for values in sums if values]
    if len(sums) < 2:
        return None
    return max(max(column) - min(column) for column in zip(*sums, strict=True))
