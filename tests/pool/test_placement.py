"""How many workers there are by default, and where each of them runs."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest

from scoring_service.pool.workers import processors
from scoring_service.pool.workers.placement import default_workers, gpu_count, placed
from scoring_service.types import EngineConfig

CONFIG = EngineConfig(model="m", device="auto")


@pytest.mark.parametrize(
    ("visible", "gpus"),
    [
        ("0", 1),
        ("0,1,2,3", 4),
        ("3, 1", 2),
        ("GPU-8932f937-d72c,GPU-2e54ae3f", 2),
        ("", 0),
        ("-1", 0),
        ("0,1,-1,2", 2),
    ],
)
def test_a_worker_a_gpu_that_is_visible(
    monkeypatch: pytest.MonkeyPatch, visible: str, gpus: int
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert gpu_count() == gpus
    assert default_workers("auto") == default_workers("cuda") == max(1, gpus)
    assert default_workers("cpu") == default_workers("cuda:1") == 1


def test_each_worker_has_a_gpu_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,5")
    assert [placed(CONFIG, i, 2).device for i in range(2)] == ["cuda:0", "cuda:1"]
    assert [placed(CONFIG, i, 4).device for i in range(4)] == ["cuda:0", "cuda:1"] * 2
    assert placed(CONFIG, 0, 1) == CONFIG, "a single one finds its GPU itself"
    one = replace(CONFIG, device="cuda:1")
    assert [placed(one, i, 2).device for i in range(2)] == ["cuda:1"] * 2


def test_workers_on_a_cpu_divide_its_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.setattr(os, "sched_getaffinity", lambda _pid: set(range(8)))
    monkeypatch.setattr(processors, "_QUOTA", Path("/nothing"))
    assert [placed(CONFIG, i, 3).threads for i in range(3)] == [2, 2, 2]
    assert placed(CONFIG, 0, 16).threads == 1
    assert placed(replace(CONFIG, threads=5), 0, 2).threads == 5, "as it was told"
    assert placed(CONFIG, 0, 2).device == "auto"
    assert placed(CONFIG, 0, 1).threads is None


@pytest.mark.parametrize(
    ("quota", "threads"),
    [("max 100000", [None, 4, 2]), ("150000 100000", [2, 1, 1]), ("9900000 100000", [8, 4, 2])],
)
def test_threads_stay_within_the_quota_of_a_container(
    quota: str, threads: list[int | None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of both versions of control groups: the second one says "max", the first one -1."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.setattr(os, "sched_getaffinity", lambda _pid: set(range(8)))
    (tmp_path / "cpu.max").write_text(f"{quota}\n")
    monkeypatch.setattr(processors, "_QUOTA", tmp_path / "cpu.max")
    assert [placed(CONFIG, 0, workers).threads for workers in (1, 2, 4)] == threads
    monkeypatch.setattr(processors, "_QUOTA", tmp_path / "nothing")
    for name, value in zip(("_OLD_QUOTA", "_OLD_PERIOD"), quota.split(), strict=True):
        (tmp_path / name).write_text(value.replace("max", "-1"))
        monkeypatch.setattr(processors, name, tmp_path / name)
    assert [placed(CONFIG, 0, workers).threads for workers in (1, 2, 4)] == threads
    assert placed(replace(CONFIG, threads=5), 0, 1).threads == 5, "as it was told"
