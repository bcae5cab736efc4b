"""A run of cases on a GPU: what fails is put down, and everything else is measured."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from benchmarks import gpu_cases
from benchmarks.gpu_cases import LOST, run_cases, run_part

PROGRAM = """
import argparse, os, pathlib, time
from benchmarks.gpu_cases import run_cases

def fail():
    raise ValueError("wrong")

parser = argparse.ArgumentParser()
for name, kind in (("piece", pathlib.Path), ("skip", int), ("seconds", float)):
    parser.add_argument(f"--{name}", type=kind)
asked = parser.parse_args()
cases = [("one", lambda: {"what": "one"}), ("raises", fail), ("dies", lambda: os._exit(7)),
         ("hangs", lambda: time.sleep(60)), ("last", lambda: {"what": "last"})]
if "hangs" not in os.environ.get("CASES", ""):
    del cases[3]
raise SystemExit(run_cases(cases, asked.piece, asked.skip, asked.seconds))
"""


def wrong_kernel() -> dict[str, object]:
    raise RuntimeError("Triton Error [CUDA]: an illegal memory access was encountered")


def test_a_case_that_raises_ends_no_other(tmp_path: Path) -> None:
    piece = tmp_path / "piece.json"
    seen = []

    def after() -> dict[str, object]:
        seen.append(json.loads(piece.read_text()))
        return {"what": "after"}

    code = run_cases([("kernel", wrong_kernel), ("after", after)], piece, 0, 60)
    assert code == 0
    figures = json.loads(piece.read_text())["figures"]
    assert "illegal memory access" in figures[0]["failed"]
    assert figures[1] == {"what": "after"}
    assert seen == [{"figures": figures[:1], "running": "after"}], "written before the next begins"


def test_a_lost_device_is_left_to_another_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail() -> None:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    device = SimpleNamespace(is_available=lambda: True, synchronize=fail)
    monkeypatch.setitem(sys.modules, "torch", SimpleNamespace(cuda=device))
    piece = tmp_path / "piece.json"
    cases = [("kernel", wrong_kernel), ("after", lambda: {"what": "after"})]
    assert run_cases(cases, piece, 0, 60) == LOST
    assert len(json.loads(piece.read_text())["figures"]) == 1
    assert run_cases(cases, piece, 1, 60) == 0
    assert json.loads(piece.read_text())["figures"] == [{"what": "after"}]


def test_a_peer_that_loses_the_device_leaves_our_figure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail() -> None:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    device = SimpleNamespace(is_available=lambda: True, synchronize=fail)
    monkeypatch.setitem(sys.modules, "torch", SimpleNamespace(cuda=device))
    piece = tmp_path / "piece.json"
    figure = {"what": "one", "sides": {"ours": {"seconds": 1.0}, "theirs": {"failed": "it died"}}}
    assert run_cases([("one", lambda: figure), ("after", dict)], piece, 0, 60) == LOST
    assert json.loads(piece.read_text())["figures"] == [figure]


def test_cases_that_time_does_not_reach_say_so(tmp_path: Path) -> None:
    piece = tmp_path / "piece.json"
    assert run_cases([("late", dict)], piece, 0, -1.0) == 0
    assert json.loads(piece.read_text())["figures"] == [
        {"what": "late", "skipped": "no time was left"}
    ]


def test_a_process_that_dies_costs_its_own_case(tmp_path: Path) -> None:
    figures = run_part([sys.executable, "-c", PROGRAM], tmp_path / "piece.json", 60)
    assert [figure["what"] for figure in figures] == ["one", "raises", "dies", "last"]
    assert "ValueError: wrong" in figures[1]["failed"]
    assert figures[2]["failed"] == "its process ended with 7"


def test_a_process_that_hangs_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CASES", "hangs")
    monkeypatch.setattr(gpu_cases, "GRACE_SECONDS", 0.5)
    figures = run_part([sys.executable, "-c", PROGRAM], tmp_path / "piece.json", 2.0)
    assert [figure["what"] for figure in figures[:3]] == ["one", "raises", "dies"]
    assert {"what": "hangs", "failed": "it took too long"} in figures
