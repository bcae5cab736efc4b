"""What a workload's time goes to: every part is found, and together they are all of it."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from benchmarks import cpu_profile
from scoring_service.models import tiny_model_path


def test_every_part_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A function that was renamed would be missed as nothing."""
    monkeypatch.setattr(sys, "argv", [
        "cpu_profile", "--model", str(tiny_model_path()), "--workloads", "topk-20,sample-1",
        "--repetitions", "1", "--out", str(tmp_path),
    ])  # fmt: skip
    cpu_profile.main()
    report = json.loads((tmp_path / "cpu-profile.json").read_text())
    assert report["commit"]
    assert report["machine"]["processor"]
    assert list(report["workloads"]) == ["topk-20", "sample-1"]
    for found in report["workloads"].values():
        assert found["profiler_costs"] > 0
        shares = found["shares"]
        assert list(shares) == [*cpu_profile.PARTS, cpu_profile.REST]
        assert all(0 < share < 1 for share in shares.values()), shares
        assert sum(shares.values()) == pytest.approx(1)
