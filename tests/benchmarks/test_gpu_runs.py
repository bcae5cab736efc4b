"""Programs that are run on a GPU once: little comes back of it, and what was found does."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import gpu
from benchmarks.report import main as print_report
from scoring_service.models import tiny_model_path


def test_one_file_comes_back_and_plots_are_drawn_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    started: list[list[str]] = []
    monkeypatch.setattr(subprocess, "run", lambda command, **_: started.append(command))
    monkeypatch.setattr(gpu, "make_model", lambda *_: tiny_model_path())
    monkeypatch.setattr(sys, "argv", ["gpu", "--out", str(tmp_path)])
    gpu.main()
    assert "--no-plots" in started[0]
    run = {"seconds": 2.0, "latencies": [1.0], "loopback_bytes": 0, "peak_bytes": {}}
    work = {"tokens": 10, "limit_seconds": 1.0, "runs": {"engine": [run], "bare": [run]}}
    facts = {"sides": {"engine": "1", "bare": "1"}, "size": "gpu", "dtype": "bfloat16"}
    written = tmp_path / "gpu.json"
    written.write_text(
        json.dumps({**facts, "head_dtype": "bfloat16", "workloads": {"grpo": work, "flat": work}})
    )
    monkeypatch.setattr(sys, "argv", ["report", str(written)])
    print_report()
    assert "| `grpo` | 5 | 0.50 | **1.00** (1.00-1.00) |" in capsys.readouterr().out
    assert sorted(path.name for path in tmp_path.glob("*.png")) == ["gpu-flat.png", "gpu-grpo.png"]
