"""The quick start is followed to the letter, by the script that newcomers may run themselves."""

from __future__ import annotations

import importlib.util
import re
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
    assert re.fullmatch(r"followed in \d+ s", ended.stderr.splitlines()[-1])


@pytest.mark.parametrize(
    ("code", "seconds", "fresh", "ends"),
    [(0, 600.0, True, 0), (0, 600.5, True, 1), (0, 900.0, False, 0), (3, 60.0, True, 3)],
)
def test_a_fresh_start_has_to_keep_the_promise_of_the_page(
    code: int, seconds: float, fresh: bool, ends: int, capsys: pytest.CaptureFixture[str]
) -> None:
    spec = importlib.util.spec_from_file_location("follow", ROOT / "tools/follow_quickstart.py")
    assert spec is not None
    assert spec.loader is not None
    follow = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(follow)
    assert follow.verdict(code, seconds, fresh=fresh) == ends
    assert f" in {seconds:.0f} s" in capsys.readouterr().err
    page = (ROOT / "docs/quickstart.md").read_text()
    assert "in less than ten minutes" in page
    assert follow.PROMISED == 10 * 60
