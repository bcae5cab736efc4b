"""Tables of GPU figures: whoever reads them sees what was met, missed, wrong, and not measured."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from benchmarks import gpu_table
from benchmarks.json_file import write_json

OURS = {"timed": "graph", "seconds": 2e-3, "times": [2e-3]}
FIGURE = {
    "what": "log-probs",
    "rows": 8,
    "route": "tiled",
    "floor_seconds": 5e-4,
    "sides": {"tiled": OURS, "Liger-Kernel": {"failed": "OSError: no such kernel\nand more"}},
    "targets": [
        {"what": "times the bare product", "wanted": "<= 1.25", "got": 1.2, "met": True},
        {"what": "extra memory", "wanted": "<= 0.01", "got": 0.02, "met": False},
        {"what": "times Liger-Kernel's speed", "wanted": ">= 1", "got": None, "met": None},
    ],
    "checks": [{"what": "error", "wanted": "<= 1e-05", "got": 1.0, "met": False}],
}
REPORT = {
    "date": "today",
    "logprobs": [FIGURE, {"what": "others", "failed": "its process ended with -11"}],
    "sampler": [{"what": "sample", "skipped": "no time was left"}],
}


def test_what_was_found_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "figures.json"
    file.write_text(json.dumps(REPORT))
    monkeypatch.setattr(sys, "argv", ["gpu_table", str(file)])
    gpu_table.main()
    said = capsys.readouterr().out.splitlines()
    for line in (
        "| log-probs | 8 | 2,000.0 | graph | 500.0 | 0.25 |  |",
        "| log-probs, 8 rows | times the bare product <= 1.25 | 1.2 | met |",
        "| log-probs, 8 rows | extra memory <= 0.01 | 0.02 | **missed** |",
        "| log-probs, 8 rows | times Liger-Kernel's speed >= 1 |  "
        "| not measured: OSError: no such kernel |",
        "* log-probs: **wrong**: error 1.0, wanted <= 1e-05",
        "* others: failed: its process ended with -11",
        "* sample: skipped: no time was left",
        "Targets: 1 met, 1 missed, 1 not measured. Checks: 0 right, 1 wrong. "
        "Cases: 1 measured, 1 failed, 1 skipped.",
    ):
        assert line in said


def test_a_report_is_whole_or_the_one_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever ends the program while it writes."""
    file = tmp_path / "report.json"
    write_json(file, {"figures": [1]})
    write_text = Path.write_text

    def full(path: Path, text: str) -> int:
        write_text(path, text[: len(text) // 2])
        raise OSError("no space left on device")

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(OSError, match="no space"):
        write_json(file, {"figures": [1, 2]})
    assert json.loads(file.read_text()) == {"figures": [1]}
