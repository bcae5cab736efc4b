"""Figures as pages quote them, from the committed results."""

from __future__ import annotations

import statistics
from typing import Any

from tests.e2e.served import ROOT

RESULTS = ROOT / "benchmarks/results"


def ratio_and_spread(work: dict[str, Any], side: str) -> str:
    """The service's speed over a side: ratio of medians, least and largest within a repetition."""
    ours, theirs = ([run["seconds"] for run in work["runs"][s]] for s in ("service", side))
    pairs = [t / o for t, o in zip(theirs, ours, strict=False)]
    middle = statistics.median(theirs) / statistics.median(ours)
    return f"{middle:.2f} ({min(pairs):.2f}-{max(pairs):.2f})"
