"""The examples run against a real server, shortened, and show what they say.

With SmolLM2, a few steps only, where SMOLLM2 is set and its folder is there (examples/README.md):

    SMOLLM2=1 make test ARGS="tests/e2e/test_examples.py -k smollm2"
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from scoring_client import ScoringClient
from tests.e2e.served import ROOT, serving


@pytest.fixture(scope="module")
def target() -> Iterator[str]:
    with serving("--dtype", "float32") as running:
        yield running.ready


SMOLLM2 = ROOT / "build/models/smollm2"
on_smollm2 = pytest.mark.skipif("SMOLLM2" not in os.environ, reason="minutes: set SMOLLM2")


@pytest.fixture(scope="module")
def smollm2() -> Iterator[str]:
    with serving(str(SMOLLM2), "--dtype", "float32") as running:
        yield running.ready


def output_of(target: str, script: str, *options: str) -> str:
    ended = subprocess.run(
        [sys.executable, ROOT / "examples" / script, "--target", target, *options],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr[-3000:]
    return ended.stdout


def fall(text: str) -> tuple[float, float]:
    found = re.search(r": ([\d.]+) at first, ([\d.]+) at last", text)
    assert found, text
    return float(found[1]), float(found[2])


@pytest.mark.parametrize(
    ("serve", "replayed", "near"),
    # The packaged model is bfloat16 where nothing is said, as `make serve` starts it.
    [(["--dtype", "float32"], 1e-6, 1e-3), ([], 5e-3, 0.4)],
    ids=["float32", "as it comes"],
)
def test_grpo(serve: list[str], replayed: float, near: float) -> None:
    options = ("--iterations", "2", "--group-size", "4", "--steps", "3")
    # Of its own: it is left with the weights that were trained.
    with serving(*serve) as running:
        text = output_of(running.ready, "grpo.py", *options)
        with ScoringClient(running.ready) as client:
            info = client.model_info()
    assert info.weight_version == 3
    assert info.dtype == ("float32" if serve else "bfloat16")
    assert re.findall(r"^version (\d): .*, (\d+) seeds$", text, re.M) == [("1", "4"), ("2", "4")]
    iterations = re.split(r"^version .*$", text, flags=re.M)[1:]
    for part in iterations:
        assert float(re.search(r"scored again: at most (\S+)", part)[1]) < 1e-5
        assert float(re.search(r"with replay: (\S+)", part)[1]) < replayed
        assert float(re.search(r"without: (\S+)", part)[1]) > max(1e-4, 2 * replayed)
        steps = re.findall(r"ratios ([\d.]+) to ([\d.]+)", part)
        assert len(steps) == 3
        # The second time as well: what was drawn from is what had been trained.
        assert all(abs(float(ratio) - 1) < near for ratio in steps[0])
        assert float(steps[-1][1]) - float(steps[-1][0]) > 0.01, "training moves the ratios"
        clipped = [int(share) for share in re.findall(r"(\d+)% clipped", part)]
        # A step that the parameters are too coarse for clips nothing.
        assert clipped[0] <= (0 if serve else 2)
        assert clipped[0] < clipped[-1]


def test_grpo_in_groups_of_one() -> None:
    """Nothing to compare a sample with is nothing to learn, not NaN in the weights."""
    options = ("--iterations", "1", "--group-size", "1", "--steps", "2", "--max-tokens", "8")
    with serving("--dtype", "float32") as running:
        text = output_of(running.ready, "grpo.py", *options)
        with ScoringClient(running.ready) as client:
            ((scores,),) = client.score([("import numpy as", [" np"])])
    assert re.findall(r"loss (\S+),", text) == ["+0.00000"] * 2
    assert (scores.logprobs < 0).all()


@pytest.mark.parametrize(
    ("script", "options", "share"),
    [
        ("distil.py", ["--steps", "30", "--copies", "1"], 0.85),
        ("sdft.py", ["--steps", "15"], 0.75),
    ],
)
def test_the_loss_falls(
    target: str, script: str, options: list[str], share: float, tmp_path: Path
) -> None:
    plot = tmp_path / "curve.png"
    first, last = fall(output_of(target, script, *options, "--plot", str(plot)))
    assert last < share * first
    assert plot.read_bytes().startswith(b"\x89PNG")


@on_smollm2
def test_grpo_on_smollm2() -> None:
    options = ("--iterations", "1", "--steps", "2", "--learning-rate", "2e-6")
    with serving(str(SMOLLM2), "--dtype", "float32") as running:
        text = output_of(running.ready, "grpo.py", "--model", str(SMOLLM2), *options)
    assert float(re.search(r"scored again: at most (\S+)", text)[1]) < 2e-4
    assert float(re.search(r"with replay: (\S+)", text)[1]) < 1e-6
    assert float(re.search(r"without: (\S+)", text)[1]) > 1e-3
    first, last = re.findall(r"ratios ([\d.]+) to ([\d.]+)", text)
    assert all(abs(float(ratio) - 1) < 1e-3 for ratio in first)
    assert float(last[1]) - float(last[0]) > 0.01, "training moves the ratios"


@on_smollm2
@pytest.mark.parametrize(
    ("script", "options"),
    [
        ("distil.py", ["--steps", "3", "--copies", "2"]),
        ("sdft.py", ["--steps", "3", "--learning-rate", "2e-5"]),
    ],
)
def test_the_loss_falls_on_smollm2(smollm2: str, script: str, options: list[str]) -> None:
    first, last = fall(output_of(smollm2, script, "--model", str(SMOLLM2), *options))
    assert last < first
