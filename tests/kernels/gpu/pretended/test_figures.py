"""The figures that are measured on a GPU, each kind once: what is ours is timed by graphs there."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest

from benchmarks import gpu_attention, gpu_timing
from benchmarks.gpu_judging import is_wrong
from benchmarks.gpu_kernels import CASES, PARTS
from benchmarks.gpu_sizes import DRY
from benchmarks.gpu_table import tables
from benchmarks.gpu_timing import GRAPH
from tests.kernels.gpu.pretended.cuda import pretended_gpu

LIMITS = {"matrix_flops_per_second": 1e12, "copy_bytes_per_second": 1e11}
ONE = {
    "logprobs": ["log-prob, entropy, rank from logits", "of 8 rows from hidden states"],
    "top-k": ["top 8"],
    "attention": ["attention, both"],
    "body": ["rotation, 8 rows"],
    "sampler": ["sample, mixed, batch 2"],
}
"""Cases of each part, an interpreter being slow: the ends or beginnings of what they are called."""


@pytest.fixture(autouse=True)
def device(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(gpu_timing, "_REPLAYS", 1)
    monkeypatch.setattr(gpu_timing, "_MAX_BUFFERS", 1)
    monkeypatch.setattr(gpu_attention, "STEPS", gpu_attention.DRY)
    with pretended_gpu():
        yield


@pytest.mark.parametrize("part", PARTS)
def test_ours_never_waits_for_the_device(part: str) -> None:
    sizes = replace(DRY, batches=(2,))
    cases = dict(CASES[part](sizes, "cuda", LIMITS))
    asked = [
        name for name in cases for one in ONE[part] if name.startswith(one) or name.endswith(one)
    ]
    assert len(asked) == len(ONE[part])
    figures = [cases[name]() for name in asked]
    for figure in figures:
        assert not is_wrong(figure), figure["checks"]
        found = {name: side for name, side in figure["sides"].items() if "cannot" not in side}
        ways = {name: side["timed"] for name, side in found.items() if ", by events" not in name}
        assert set(ways.values()) == {GRAPH}, {
            name: side.get("not_captured") for name, side in found.items()
        }
    assert "0 wrong" in tables({part: figures}, [part])
