"""What was measured, for people: tables, and a plot a workload.

`python -m benchmarks.report FILE.json` prints the tables of a run again and draws its plots.
"""

from __future__ import annotations

import json
import statistics
import sys
from pathlib import Path
from typing import Any

from benchmarks.harness import median_seconds


def tables(report: dict[str, Any]) -> str:
    """Markdown: a line a workload; speed and ratios of every side; what its processes used."""
    ours = "service" if "service" in report["sides"] else "engine"
    return f"{_summary(report, ours)}\n\n{_speed(report, ours)}\n\n{_processes(report)}"


def _summary(report: dict[str, Any], ours: str) -> str:
    others = [side for side in report["sides"] if side != ours]
    lines = [
        f"| workload | {ours}, tokens/s | GFLOP/s (min-max) | of the limit | its speed over "
        + " | ".join(f"`{side}`" for side in others)
        + " |",
        "|---" * (4 + len(others)) + "|",
    ]
    for name, workload in report["workloads"].items():
        runs = workload["runs"]
        if ours not in runs:
            continue
        seconds = median_seconds(runs[ours])
        ratios = [_ratio(runs[side], runs[ours]) if side in runs else "" for side in others]
        lines.append(
            f"| `{name}` | {workload['tokens'] / seconds:,.0f} "
            f"| {_products(report, workload)} "
            f"| {workload['limit_seconds'] / seconds:.2f} | {' | '.join(ratios)} |"
        )
    return "\n".join(lines)


def _products(report: dict[str, Any], workload: dict[str, Any]) -> str:
    """The rate of one large product that the limit is of: the workload's own, or an old file's."""
    samples = workload["rates"] if "rates" in workload else [report["machine"]]
    rates = [sample["matrix_flops_per_second"] / 1e9 for sample in samples]
    return f"{statistics.median(rates):,.0f} ({min(rates):,.0f}-{max(rates):,.0f})"


def _speed(report: dict[str, Any], ours: str) -> str:
    lines = [
        f"| workload | side | tokens/s (min-max) | {ours}'s speed over it (min-max) "
        "| of the limit | p50 / p95 / p99 latency, s |",
        "|---|---|---|---|---|---|",
    ]
    for name, workload in report["workloads"].items():
        runs = workload["runs"]
        for side, found in runs.items():
            seconds = [run["seconds"] for run in found]
            median = statistics.median(seconds)
            rates = [workload["tokens"] / s for s in (median, max(seconds), min(seconds))]
            ratio = "" if side == ours or ours not in runs else _ratio(found, runs[ours])
            latencies = sorted(x for run in found for x in run["latencies"])
            quantiles = " / ".join(_quantile(latencies, q) for q in (0.5, 0.95, 0.99))
            lines.append(
                f"| {name} | {side} | {rates[0]:,.0f} ({rates[1]:,.0f}-{rates[2]:,.0f}) | {ratio} "
                f"| {workload['limit_seconds'] / median:.2f} | {quantiles} |"
            )
    return "\n".join(lines)


def _ratio(theirs: list[dict[str, Any]], ours: list[dict[str, Any]]) -> str:
    """Ratio of medians over the repetitions that both have, and the spread within one of them.

    A side that had time for fewer has the first ones; the ratio lies inside its spread.
    """
    both = min(len(theirs), len(ours))
    theirs, ours = theirs[:both], ours[:both]
    pairs = [t["seconds"] / o["seconds"] for t, o in zip(theirs, ours, strict=True)]
    middle = median_seconds(theirs) / median_seconds(ours)
    return f"**{middle:.2f}** ({min(pairs):.2f}-{max(pairs):.2f})"


def _processes(report: dict[str, Any]) -> str:
    lines = [
        "| workload | side | process | peak MiB | processor time, s | loopback MB |",
        "|---|---|---|---|---|---|",
    ]
    for name, workload in report["workloads"].items():
        for side, found in workload["runs"].items():
            wire = statistics.median(run["loopback_bytes"] for run in found) / 1e6
            for process in found[0]["peak_bytes"]:
                peak = max(run["peak_bytes"][process] for run in found) / 2**20
                used = statistics.median(run["cpu_seconds"][process] for run in found)
                shown = f"{wire:.2f}" if process == "grpc" else ""
                lines.append(
                    f"| {name} | {side} | {process} | {peak:,.0f} | {used:.2f} | {shown} |"
                )
    return "\n".join(lines)


def _quantile(values: list[float], q: float) -> str:
    if not values:
        return "-"
    return f"{values[min(len(values) - 1, int(q * len(values)))]:.3g}"


def plots(report: dict[str, Any], folder: Path, stem: str) -> list[Path]:
    """One PNG a workload: every repetition of every side, and the machine's limit.

    Returns:
        The files; none where matplotlib is not installed.
    """
    try:
        import matplotlib
    except ImportError:
        return []
    matplotlib.use("Agg")
    from matplotlib import pyplot

    made = []
    for name, workload in report["workloads"].items():
        sides = list(workload["runs"])
        figure, axes = pyplot.subplots(figsize=(7, 0.6 * len(sides) + 1.6))
        for place, side in enumerate(sides):
            rates = [workload["tokens"] / run["seconds"] for run in workload["runs"][side]]
            axes.barh(place, statistics.median(rates), color="#4878a8", height=0.6)
            axes.plot(rates, [place] * len(rates), "k|", markersize=12)
        axes.axvline(workload["tokens"] / workload["limit_seconds"], color="#c44e52", ls="--")
        axes.set_yticks(range(len(sides)), sides)
        axes.invert_yaxis()
        axes.set_xlabel("tokens/s: median (bar), repetitions (ticks), the machine's limit (dashed)")
        axes.set_title(
            f"{name}, {report['size']}, {report['dtype']} body, {report['head_dtype']} head"
        )
        figure.tight_layout()
        path = folder / f"{stem}-{name}.png"
        figure.savefig(path, dpi=80)
        pyplot.close(figure)
        made.append(path)
    return made


def main() -> None:
    """Prints the tables of a file and draws its plots beside it."""
    path = Path(sys.argv[1])
    report = json.loads(path.read_text())
    plots(report, path.parent, path.stem)
    print(tables(report))


if __name__ == "__main__":
    main()
