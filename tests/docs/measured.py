"""Figures as pages quote them, from the committed results."""

from __future__ import annotations

import json
import statistics
from typing import Any

from tests.e2e.served import ROOT

RESULTS = ROOT / "benchmarks/results"

LATEST = ("cpu-scoring", "cpu-samples", "cpu-lists")
EARLIER = ("cpu-float32-head", "cpu-again", "cpu")
"""Files of earlier code, whose workloads had tokens of the repetition alone: some prompts began as
those of a workload before them, which only this service's prefix cache knew."""

COLD = ("grpo", "flat", "skewed", "topk-20", "topk-128", "topk-1024")
"""Workloads that found nothing of others in the earlier files."""


def report(name: str) -> dict[str, Any]:
    """A committed result."""
    found: dict[str, Any] = json.loads((RESULTS / f"{name}.json").read_text())
    return found


def latest_workloads() -> dict[str, dict[str, Any]]:
    """Of the latest files, by name."""
    return {name: work for file in LATEST for name, work in report(file)["workloads"].items()}


def medians(work: dict[str, Any]) -> dict[str, float]:
    """Seconds of each side."""
    return {
        side: statistics.median(run["seconds"] for run in runs)
        for side, runs in work["runs"].items()
    }


def ratio_and_spread(work: dict[str, Any], side: str) -> str:
    """The service's speed over a side: ratio of medians, least and largest within a repetition.

    Of the repetitions that both have: one that had time for fewer has the first ones.
    """
    runs = zip(work["runs"]["service"], work["runs"][side], strict=False)
    both = [(ours["seconds"], theirs["seconds"]) for ours, theirs in runs]
    pairs = [theirs / ours for ours, theirs in both]
    ours, theirs = (statistics.median(column) for column in zip(*both, strict=True))
    middle = theirs / ours
    return f"{middle:.2f} ({min(pairs):.2f}-{max(pairs):.2f})"


def limit_seconds(work: dict[str, Any]) -> float:
    """What the machine allowed a workload by the rates measured around it.

    Older files have rates of the whole run alone, and limits that were taken of them.
    """
    if "rates" not in work:
        stored: float = work["limit_seconds"]
        return stored
    rate, copied = (
        statistics.median(sample[name] for sample in work["rates"])
        for name in ("matrix_flops_per_second", "copy_bytes_per_second")
    )
    return max(work["flops"] / rate, work["bytes"] / copied)
