"""engine and kernels run where there is torch, transformers and numpy, and no server."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import scoring_service
from scoring_service.models import tiny_model_path

BARE = """
import sys

FORBIDDEN = {"grpc", "google", "structlog", "cyclopts", "scoring_client", "prometheus_client",
             "opentelemetry", "pydantic", "ray", "hypothesis", "matplotlib"}

class Without:
    def __init__(self, finder):
        self._finder = finder

    def __getattr__(self, name):
        return getattr(self._finder, name)

    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in FORBIDDEN:
            return None
        return self._finder.find_spec(name, path, target)

sys.meta_path[:] = map(Without, sys.meta_path)
"""

PROGRAM = (
    BARE
    + """
import json, pkgutil

import scoring_service, scoring_service.engine, scoring_service.kernels
assert scoring_service.__file__.startswith(sys.argv[1]), scoring_service.__file__
for room in (scoring_service.engine, scoring_service.kernels):
    for module in pkgutil.walk_packages(room.__path__, f"{room.__name__}."):
        __import__(module.name)

import numpy as np
from scoring_service.engine.loading.loader import load
from scoring_service.engine.worker.service_loop import make_runner
from scoring_service.types import (CompletionTask, EngineConfig, GroupTask, Processing, RowWants,
                                   ScoreCall)

loaded = load(EngineConfig(model=sys.argv[2], device="cpu"), lambda stage: None)
ids = np.array([5, 6, 7], dtype=np.int32)
group = GroupTask(0, ids, (CompletionTask(0, ids, ((0, 3),)),), Processing(), 0)
runner = make_runner(loaded, print)
runner.submit(ScoreCall(1, (group,), RowWants()))
events = runner.step()
ours = sorted(name for name in sys.modules if name.startswith("scoring_service."))
print(json.dumps({"rows": events[1].block.rows, "modules": ours}))
"""
)

GPU_PROGRAM = (
    BARE
    + """
import pytest

import benchmarks.gpu, benchmarks.gpu_attention, benchmarks.gpu_kernels, benchmarks.gpu_profile
import benchmarks.gpu_tests

sys.exit(pytest.main(["--collect-only", "-q", "-c", "/dev/null", "--rootdir", ".", "-p",
                      "no:cacheprovider", "tests/kernels/gpu"]))
"""
)


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> subprocess.CompletedProcess[str]:
    """A copy of the two rooms and the shared ground alone, on PYTHONPATH and not installed."""
    checkout = tmp_path_factory.mktemp("checkout")
    source = Path(scoring_service.__file__).parent
    bare = checkout / "scoring_service"
    bare.mkdir()
    shared = ("types", "errors", "garbage", "model_shape", "peak_memory")
    for name in ("__init__.py", *(f"{module}.py" for module in shared)):
        shutil.copy(source / name, bare)
    for room in ("engine", "kernels"):
        shutil.copytree(source / room, bare / room, ignore=shutil.ignore_patterns("__pycache__"))
    return subprocess.run(
        [sys.executable, "-c", PROGRAM, str(checkout), str(tiny_model_path())],
        env={**os.environ, "PYTHONPATH": str(checkout), "OMP_NUM_THREADS": "1"},
        cwd=checkout,
        capture_output=True,
        text=True,
        check=False,
    )


def test_it_scores(ran: subprocess.CompletedProcess[str]) -> None:
    assert ran.returncode == 0, ran.stderr
    assert '"rows": 3' in ran.stdout


def test_it_uses_its_own_rooms_alone(ran: subprocess.CompletedProcess[str]) -> None:
    assert "scoring_service.engine.worker.process" in ran.stdout
    for room in ("rpc", "pool", "config", "cli", "telemetry"):
        assert f"scoring_service.{room}" not in ran.stdout


def test_tests_and_benchmarks_of_a_gpu_are_found_there() -> None:
    found = subprocess.run(
        [sys.executable, "-c", GPU_PROGRAM],
        # It is no CI, where what it has not would be missed.
        env={**os.environ, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1", "CI": ""},
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        check=False,
    )
    assert found.returncode == 0, found.stdout + found.stderr
    assert "tests/kernels/gpu/test_linear.py::" in found.stdout
