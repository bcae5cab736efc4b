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


class Network:
    """Saves its config and then its weights, for which there may be no room."""

    def __init__(self, room: bool) -> None:
        self.room = room

    def save_pretrained(self, folder: Path) -> None:
        folder.mkdir(parents=True)
        (folder / "config.json").write_text("{}")
        if not self.room:
            raise OSError("no space left on device")
        (folder / "model.safetensors").write_text("weights")


def test_a_model_that_was_not_saved_to_its_end_is_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    networks = [Network(room=False), Network(room=True)]
    monkeypatch.setattr(gpu.AutoModelForCausalLM, "from_config", lambda *_, **__: networks.pop(0))
    folder = tmp_path / "models" / "random-1"
    with pytest.raises(OSError, match="no space"):
        gpu.make_model(folder, 1, "cpu")
    for _ in range(2):
        assert gpu.make_model(folder, 1, "cpu") == folder
        assert sorted(file.name for file in folder.iterdir()) == [
            "config.json",
            "model.safetensors",
        ]
    assert [path.name for path in folder.parent.iterdir()] == ["random-1"]


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
