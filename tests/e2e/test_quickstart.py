"""The quick start is followed to the letter, by the script that newcomers may run themselves."""

from __future__ import annotations

import shutil
import subprocess
import sys

import pytest

from tests.e2e.served import BIN, ROOT


@pytest.mark.skipif(not (ROOT / ".git").exists(), reason="no git checkout to clone")
@pytest.mark.skipif(BIN != ROOT / ".venv" / "bin", reason="make serve uses .venv")
@pytest.mark.skipif(not shutil.which("make"), reason="needs make")
def test_the_quick_start_works_as_it_stands() -> None:
    ended = subprocess.run(
        [sys.executable, ROOT / "tools" / "follow_quickstart.py"],
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr[-3000:]
    # What the page promises: grpcurl's answer, the client's table, the script's log-probs.
    assert '"logprobs": [' in ended.stdout
    assert "times as likely as ' banana'" in ended.stdout
    assert "(' np',) [-0.81" in ended.stdout
    assert "+ python first.py" in ended.stderr
