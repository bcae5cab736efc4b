"""Runs every side on every workload in turn, so that the machine's moods meet all of them."""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.limits import Shape, bytes_read, flops, least_seconds, median_rates
from benchmarks.machine import copy_rate, describe, matrix_rate
from benchmarks.side_process import SideProcess
from benchmarks.workloads import Scoring, Work, build

Say = Callable[[str], None]

_PRODUCT_ROWS = {"cpu": 1024, "cuda": 8192}
"""Rows of the products that the machine's matrix rate is measured with."""

_RATE_SECONDS = 0.25
"""That a rate is measured for: both of them, twice a workload, within two seconds."""


@dataclass(frozen=True)
class Thrift:
    """What a run leaves out where its time is short."""

    whole: int | None = None
    """Workloads, from the first one on, that have every side and every repetition; None = all."""
    later_repetitions: int = 1
    """Counted ones of the workloads after those."""
    slow_sides: tuple[str, ...] = ()
    """They take no part in those, and run once, after a warm-up, in the ones before."""


@dataclass(frozen=True)
class Plan:
    """What is to be measured."""

    workloads: list[str]
    size: str
    repetitions: int
    """Counted ones; a warm-up of every side comes before them."""
    model: Path
    """Folder with the config that limits are counted from."""
    dtype: str
    device: str
    began: float
    """`time.monotonic()` of the start."""
    time_limit: float
    """Seconds from there after which no further repetition begins."""
    patience: float
    """Seconds that a repetition may take beyond the time limit, where there is one."""
    thrift: Thrift = Thrift()

    def turns(self, place: int, side: str) -> int:
        """Counted repetitions of a side on the workload of that number, from 1; 0 = no part."""
        thrift = self.thrift
        slow = side in thrift.slow_sides
        if thrift.whole is None or place <= thrift.whole:
            return min(1, self.repetitions) if slow else self.repetitions
        return 0 if slow else min(thrift.later_repetitions, self.repetitions)


def measure(sides: list[SideProcess], plan: Plan, say: Say) -> Iterator[dict[str, Any]]:
    """The report so far, as plain data, once after every workload: nothing is lost by a stop."""
    shape = Shape.of(json.loads((plan.model / "config.json").read_text()))
    report: dict[str, Any] = {"machine": describe(), "workloads": {}, "failures": []}
    alive = list(sides)
    width = 4 if plan.dtype == "float32" else 2
    for place, name in enumerate(plan.workloads, 1):
        work = build(name, plan.size, shape.vocab)
        counted = {"flops": flops(shape, work), "bytes": bytes_read(shape, work, width)}
        rates: list[dict[str, float]] = []
        runs: dict[str, list[dict[str, Any]]] = {side.name: [] for side in sides}
        able = [side for side in alive if plan.turns(place, side.name)]
        for repetition in range(plan.repetitions + 1):
            if repetition == 1:
                rates.append(_rates(shape, plan))
            for side in [side for side in able if repetition <= plan.turns(place, side.name)]:
                elapsed = time.monotonic() - plan.began
                if elapsed > plan.time_limit:
                    able.clear()
                    break
                turn = (
                    f"repetition {repetition}/{plan.turns(place, side.name)}"
                    if repetition
                    else "warm-up"
                )
                where = f"{elapsed:5.0f} s, {place}/{len(plan.workloads)}"
                say(f"[{where}] {name}: {side.name}, {turn}")
                left = plan.time_limit - elapsed + plan.patience
                try:
                    outcome = side.run(name, plan.size, shape.vocab, repetition, left)
                except (RuntimeError, OSError, ValueError) as error:
                    outcome = {"failed": str(error)}
                    alive.remove(side)
                if reason := outcome.get("failed"):
                    say(f"{name}: {side.name} failed: {reason}")
                    report["failures"].append({"workload": name, "side": side.name, "why": reason})
                if why := _was_warm(work, outcome):
                    say(f"{name}: {side.name}: {why}")
                    report["failures"].append({"workload": name, "side": side.name, "why": why})
                if outcome.get("cannot") or reason:
                    able.remove(side)
                elif repetition:
                    runs[side.name].append(outcome)
        if not any(runs.values()):
            yield report
            continue  # the time limit, or nobody could
        rates.append(_rates(shape, plan))
        limit = least_seconds(counted["flops"], counted["bytes"], median_rates(rates))
        report["workloads"][name] = {
            "tokens": work.tokens,
            **counted,
            "rates": rates,
            "limit_seconds": limit,
            "largest_disagreement": _disagreement(runs) if isinstance(work, Scoring) else None,
            "runs": {side: found for side, found in runs.items() if found},
        }
        yield report


def _rates(shape: Shape, plan: Plan) -> dict[str, float]:
    """What the machine does now: it changes within minutes, and a limit is of a workload's own."""
    rows = _PRODUCT_ROWS.get(plan.device.partition(":")[0], _PRODUCT_ROWS["cpu"])
    sizes = (rows, shape.hidden, shape.intermediate)
    return {
        "matrix_flops_per_second": matrix_rate(plan.dtype, *sizes, plan.device, _RATE_SECONDS),
        "copy_bytes_per_second": copy_rate(plan.device, _RATE_SECONDS),
    }


def _was_warm(work: Work, outcome: dict[str, Any]) -> str | None:
    """What a prefix cache knew of a workload's prompts, which are new in every repetition.

    None where it knew nothing, or where the side does not tell. The completions and samples of a
    prompt share it within the work; no cache is asked for that.
    """
    cached = outcome.get("cached_tokens")
    if cached is None or cached <= work.known_by_chance:
        return None
    return f"{cached:,} prompt tokens came from a cache, of prompts that should have been new"


def median_seconds(runs: list[dict[str, Any]]) -> float:
    """Of the repetitions of one side."""
    return statistics.median(run["seconds"] for run in runs)


def _disagreement(runs: dict[str, list[dict[str, Any]]]) -> float | None:
    """Largest difference between two sides' log-prob of a sequence, in nats.

    Sides that do not report sums (the bare arithmetic) do not take part.
    """
    sums = [found[0]["logprob_sums"] for found in runs.values() if found]
    sums = [values for values in sums if values]
    if len(sums) < 2:
        return None
    return max(max(column) - min(column) for column in zip(*sums, strict=True))
