"""Programs that are run on a GPU once: little comes back of it, and what was found does."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from benchmarks import gpu, gpu_tests
from benchmarks.report import main as print_report
from scoring_service.models import tiny_model_path
from tests.e2e.served import ROOT
from tests.kernels.gpu.conftest import pytest_collection_modifyitems


def test_every_file_of_tests_is_run() -> None:
    found = [path.name for path in (ROOT / gpu_tests.FOLDER).glob("test_*.py")]
    assert sorted(gpu_tests.FILES) == sorted(found)


def test_parts_of_a_file_have_all_of_its_tests(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each of them once, and those of one model in one process."""
    models = ["llama", "gpt2", "phi", "gemma2", "qwen3"]
    items = [
        SimpleNamespace(nodeid=f"{test}[{model}]", callspec=SimpleNamespace(params={"pair": model}))
        for model in models
        for test in ("scores", "samples")
    ]
    items += [SimpleNamespace(nodeid=f"kernel {number}") for number in range(7)]
    found: list[str] = []
    parts = gpu_tests.parts_of("test_attention.py")
    assert len(parts) == 4
    for part in parts:
        monkeypatch.setenv(gpu_tests.PART, part)
        left: list[Any] = list(items)
        pytest_collection_modifyitems(left)
        assert len(left) >= 4
        found += [item.nodeid for item in left]
        whose = [item.callspec.params["pair"] for item in left if hasattr(item, "callspec")]
        assert all(whose.count(model) == 2 for model in whose)
    assert sorted(found) == sorted(item.nodeid for item in items)


TESTS = """
import signal, time

def test_right():
    pass

def test_wrong():
    assert 1 + 1 == 3

def test_that_hangs():
    {first}
    open({began!r}, "w").close()
    while True:
        time.sleep(0.1)
"""


def run_until_hanging(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, first: str = ""
) -> tuple[Path, dict[str, Any], str]:
    """A file of tests, of which the last hangs, whose time is over as soon as that one begins."""
    began = tmp_path / "began"

    class Impatient(subprocess.Popen[str]):
        def communicate(self, *_: Any, timeout: float | None = None) -> Any:
            if began.exists():
                return super().communicate(timeout=timeout)
            while not began.exists():
                assert self.poll() is None, self.communicate()
                time.sleep(0.01)
            raise subprocess.TimeoutExpired(self.args, 0.0)

    monkeypatch.setattr(subprocess, "Popen", Impatient)
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")  # one of them interrupts what is long
    file = tmp_path / "test_hanging.py"
    file.write_text(TESTS.format(began=str(began), first=first or "pass"))
    return file, *gpu_tests.run_tests([str(file)], time.monotonic() + 60)


def test_what_a_file_found_outlives_its_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # However long it takes to write what it found; the next test is about one that writes nothing.
    monkeypatch.setattr(gpu_tests, "_GRACE", None)
    file, found, said = run_until_hanging(tmp_path, monkeypatch)
    assert found["passed"] == 1
    assert found["complete"] is False
    (wrong,) = [why for test, why in found["failed"].items() if test.endswith("::test_wrong")]
    assert "assert (1 + 1) == 3" in wrong
    assert found["failed"][str(file)] == "pytest ended with 2"
    assert re.search(r"::test_that_hangs\s*$", said, re.MULTILINE), "it did not end"


def test_what_no_interrupt_reaches_is_killed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gpu_tests, "_GRACE", 0.2)
    deaf = "signal.signal(signal.SIGINT, signal.SIG_IGN)"
    file, found, said = run_until_hanging(tmp_path, monkeypatch, deaf)
    assert found["failed"] == {str(file): "pytest ended with -9"}
    assert re.search(r"::test_that_hangs\s*$", said, re.MULTILINE)


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
    work["rates"] = [{"matrix_flops_per_second": 6e14, "copy_bytes_per_second": 4e12}]
    facts = {"sides": {"engine": "1", "bare": "1"}, "size": "gpu", "dtype": "bfloat16"}
    written = tmp_path / "gpu.json"
    written.write_text(
        json.dumps({**facts, "head_dtype": "bfloat16", "workloads": {"grpo": work, "flat": work}})
    )
    monkeypatch.setattr(sys, "argv", ["report", str(written)])
    print_report()
    assert (
        "| `grpo` | 5 | 600,000 (600,000-600,000) | 0.50 | **1.00** (1.00-1.00) |"
        in capsys.readouterr().out
    )
    assert sorted(path.name for path in tmp_path.glob("*.png")) == ["gpu-flat.png", "gpu-grpo.png"]
