"""In CI a test may be skipped for few reasons."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from tests.e2e.served import ROOT

FILES = {
    "test_some.py": """
import pytest

@pytest.mark.skipif(True, reason="no tool for this platform")
def test_marked():
    pass

def test_called():
    pytest.skip("no tool for this platform")

@pytest.mark.skipif(True, reason="minutes: set SMOLLM2")
def test_listed():
    pass

@pytest.mark.xfail(reason="a known fault")
def test_fails_as_expected():
    raise AssertionError
""",
    "test_whole.py": """
import pytest

pytest.skip("no library for this platform", allow_module_level=True)
""",
}
OUTCOMES = ("PASSED ", "FAILED ", "ERROR ", "SKIPPED ", "XFAIL ", "XPASS ")


def outcomes(folder: Path, ci: str) -> set[str]:
    """What pytest says of each test under this repository's hooks."""
    options = ["-q", "-rA", "-p", "tests.conftest", "-p", "no:cacheprovider", "-c", "pytest.ini"]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *options, "."],
        capture_output=True,
        text=True,
        check=False,
        cwd=folder,
        env={**os.environ, "CI": ci, "PYTHONPATH": os.pathsep.join(map(str, (ROOT, *sys.path)))},
    )
    assert ("CI skips nothing but for the reasons" in done.stdout) is (ci == "true")
    return {line for line in done.stdout.splitlines() if line.startswith(OUTCOMES)}


def test_ci_fails_where_a_test_is_skipped_for_a_reason_that_is_not_listed(tmp_path: Path) -> None:
    (tmp_path / "pytest.ini").write_text("[pytest]\n")
    for name, code in FILES.items():
        (tmp_path / name).write_text(code)
    (whole,) = outcomes(tmp_path, ci="true")
    assert whole.startswith("ERROR test_whole.py - ")
    assert whole.endswith("no library for this platform")
    (tmp_path / "test_whole.py").unlink()
    found = {line.partition(" - ")[0] for line in outcomes(tmp_path, ci="true")}
    assert found == {
        "ERROR test_some.py::test_marked",
        "FAILED test_some.py::test_called",
        "SKIPPED [1] test_some.py:11: minutes: set SMOLLM2",
        "XFAIL test_some.py::test_fails_as_expected",
    }


def test_elsewhere_it_is_skipped(tmp_path: Path) -> None:
    (tmp_path / "pytest.ini").write_text("[pytest]\n")
    for name, code in FILES.items():
        (tmp_path / name).write_text(code)
    found = outcomes(tmp_path, ci="")
    assert sum(line.startswith("SKIPPED") for line in found) == 4
    assert not any(line.startswith(("FAILED", "ERROR")) for line in found)
