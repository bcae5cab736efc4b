"""What `gpu_kernels` found, for people: each case beside its floor, each target met or missed.

`python -m benchmarks.gpu_table FILE.json` prints the tables of a run again.
"""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from benchmarks.gpu_cases import Figure

_ANSWERS = {True: "met", False: "**missed**"}


def tables(report: dict[str, Any], parts: Iterable[str]) -> str:
    """Markdown: a line a case, a line a target, what is wrong, and how many there are of each."""
    figures = [figure for part in parts for figure in report.get(part, [])]
    blocks = [_times(figures), _targets(figures), "\n".join(_faults(figures)), _counts(figures)]
    return "\n\n".join(block for block in blocks if block)


def _times(figures: list[Figure]) -> str:
    lines = [
        "| case | rows | microseconds | timed by | floor | of the floor | times torch's speed |",
        "|---|---|---|---|---|---|---|",
    ]
    for figure in figures:
        if "sides" not in figure:
            continue
        ours, floor = figure["sides"][figure.get("route", "ours")], figure["floor_seconds"]
        speed = figure.get("times torch's speed")
        lines.append(
            f"| {figure['what']} | {figure.get('rows', '')} | {1e6 * ours['seconds']:,.1f} "
            f"| {ours['timed']} | {1e6 * floor:,.1f} | {floor / ours['seconds']:.2f} "
            f"| {'' if speed is None else f'{speed:.2f}'} |"
        )
    return "\n".join(lines)


def _targets(figures: list[Figure]) -> str:
    lines = ["| of | wanted | got | |", "|---|---|---|---|"]
    for figure in figures:
        of = figure["what"] + (f", {figure['rows']} rows" if "rows" in figure else "")
        for target in figure.get("targets", []):
            got = "" if target["got"] is None else f"{target['got']:.3g}"
            answer = _ANSWERS.get(target["met"]) or f"not measured{_why(figure, target['what'])}"
            lines.append(f"| {of} | {target['what']} {target['wanted']} | {got} | {answer} |")
    return "\n".join(lines) if len(lines) > 2 else ""


def _why(figure: Figure, what: str) -> str:
    """Of a side that the target names."""
    for name, side in figure["sides"].items():
        if name in what and (reason := side.get("failed") or side.get("cannot")):
            return f": {reason.splitlines()[0][:100]}"
    return ""


def _faults(figures: list[Figure]) -> Iterator[str]:
    for figure in figures:
        for kind in ("failed", "skipped"):
            if kind in figure:
                yield f"* {figure['what']}: {kind}: {figure[kind]}"
        for check in figure.get("checks", []):
            if not check["met"]:
                yield (
                    f"* {figure['what']}: **wrong**: {check['what']} {check['got']}, "
                    f"wanted {check['wanted']}"
                )


def _counts(figures: list[Figure]) -> str:
    targets = Counter(target["met"] for figure in figures for target in figure.get("targets", []))
    checks = Counter(bool(check["met"]) for figure in figures for check in figure.get("checks", []))
    failed, skipped = (sum(kind in figure for figure in figures) for kind in ("failed", "skipped"))
    return (
        f"Targets: {targets[True]} met, {targets[False]} missed, {targets[None]} not measured. "
        f"Checks: {checks[True]} right, {checks[False]} wrong. "
        f"Cases: {len(figures) - failed - skipped} measured, {failed} failed, {skipped} skipped."
    )


def main() -> None:
    """Prints the tables of a file."""
    report = json.loads(Path(sys.argv[1]).read_text())
    print(tables(report, [name for name, found in report.items() if isinstance(found, list)]))


if __name__ == "__main__":
    main()
