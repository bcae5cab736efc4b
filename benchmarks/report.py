"""What was measured, for people: a table, and a plot a workload."""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import Any

from benchmarks.harness import median_seconds


def table(report: dict[str, Any], ours: str) -> str:
    """Markdown: tokens/s of each side, ratio of medians ours / theirs, fraction of the limit."""
    lines = [
        "| workload | side | tokens/s (median, min-max) | ours / theirs | of the limit "
        "| p50 / p99 latency s | peak MiB |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, workload in report["workloads"].items():
        runs = workload["runs"]
        base = median_seconds(runs[ours]) if ours in runs else None
        for side, found in runs.items():
            seconds = [run["seconds"] for run in found]
            median = statistics.median(seconds)
            rates = [workload["tokens"] / s for s in (median, max(seconds), min(seconds))]
            ratio = "" if base is None or side == ours else f"{median / base:.2f}"
            latencies = sorted(x for run in found for x in run["latencies"])
            p50, p99 = (_quantile(latencies, q) for q in (0.5, 0.99))
            peak = max(sum(run["peak_bytes"].values()) for run in found) / 2**20
            lines.append(
                f"| {name} | {side} | {rates[0]:,.0f} ({rates[1]:,.0f}-{rates[2]:,.0f}) | {ratio} "
                f"| {workload['limit_seconds'] / median:.2f} | {p50} / {p99} | {peak:,.0f} |"
            )
    return "\n".join(lines)


def _quantile(values: list[float], q: float) -> str:
    if not values:
        return "-"
    return f"{values[min(len(values) - 1, int(q * len(values)))]:.3g}"


def plots(report: dict[str, Any], folder: Path, stem: str) -> list[Path]:
    """One PNG a workload: every repetition of every side, and the machine's limit."""
    import matplotlib

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
        figure.savefig(path, dpi=110)
        pyplot.close(figure)
        made.append(path)
    return made
