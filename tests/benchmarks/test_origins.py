"""Results say when, of which commit, by which command and on which machine they were taken."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from tests.chaos.test_fuzz import write_figures
from tests.chaos.test_kills import Figures
from tests.e2e.served import ROOT
from tests.intensity import SOAK

ORIGIN = {"date", "commit", "command", "machine"}


def read(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(path.read_text())
    return found


def test_the_wire_says_where_it_was_measured(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "benchmarks.wire", "--repetitions", "1"]
    out = tmp_path / "wire.json"
    ended = subprocess.run(
        [*command, "--out", str(out)], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert ended.returncode == 0, ended.stderr
    found = read(out)
    assert found.keys() >= ORIGIN
    assert found["command"].startswith("--repetitions 1")
    assert [len(shape["seconds"]) for shape in found["shapes"].values()] == [1, 1]


@pytest.mark.skipif(SOAK, reason="writes where the committed results are")
def test_faults_say_where_they_were_survived(tmp_path: Path) -> None:
    write_figures(Counter({("Score", "OK"): 3}), tmp_path)
    found = read(tmp_path / "fuzz.json")
    assert found.keys() >= ORIGIN
    assert found["Score"] == {"OK": 3}
    figures = Figures(2, 1, 0.5, [1.0, float("inf")], {"ok": 1}, 1.0, 1.0, 1.0, 1.0)
    figures.write(tmp_path)
    run = read(tmp_path / "kills.json")["2 workers"]
    assert run.keys() >= ORIGIN
    assert run["recovery_seconds"] == [1.0, None]


WRITERS = (
    "flood",
    "transport",
    "weights/__main__",
    "telemetry_cost",
    "between_tokens",
    "gpu_kernels",
)
PROGRAMS = [ROOT / f"benchmarks/{name}.py" for name in (*WRITERS, "gpu_profile", "gpu_tests")]
TESTS = [ROOT / f"tests/chaos/test_{name}.py" for name in ("overload", "soak")]


@pytest.mark.parametrize("program", [*PROGRAMS, *TESTS], ids=str)
def test_those_that_take_long_say_so_too(program: Path) -> None:
    """By their code: they measure for minutes, or need a GPU."""
    tree = ast.parse(program.read_text())
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call)]
    # As text, or as a file.
    written = {
        ast.unparse(call.args[-1]) for call in calls if named(call.func) in ("dumps", "write_json")
    }
    reports = [
        node.targets[0] if isinstance(node, ast.Assign) else node.target
        for node in ast.walk(tree)
        if isinstance(node, ast.Assign | ast.AnnAssign)
        and isinstance(node.value, ast.Dict)
        and "origin" in spread(node.value)
        and has_machine(node.value, tree)
    ]
    assert [ast.unparse(report) in written for report in reports] == [True]


def named(function: ast.expr) -> str:
    """What is called, without where it comes from."""
    return ast.unparse(function).rpartition(".")[2]


def spread(made: ast.Dict) -> set[str]:
    """Functions whose results a dictionary takes up: **origin()."""
    pairs = zip(made.keys, made.values, strict=True)
    return {named(v.func) for k, v in pairs if k is None and isinstance(v, ast.Call)}


def has_machine(report: ast.Dict, tree: ast.Module) -> bool:
    """Whether it describes the machine, itself or by a function of the program."""
    found = {ast.unparse(k): v for k, v in zip(report.keys, report.values, strict=True) if k}
    machine = found.get("'machine'")
    if not isinstance(machine, ast.Call):
        return False
    functions = [f for f in tree.body if isinstance(f, ast.FunctionDef)]
    own = [f for f in functions if f.name == named(machine.func)]
    dicts = [node for f in own for node in ast.walk(f) if isinstance(node, ast.Dict)]
    return named(machine.func) == "describe" or any("describe" in spread(made) for made in dicts)
