"""Figures of the kernels at tiny sizes: what is computed is checked, and peers cost nothing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
from torch import Tensor

from benchmarks import gpu_linear
from benchmarks.gpu_judging import is_wrong
from benchmarks.gpu_sizes import DRY
from benchmarks.gpu_timing import Work
from scoring_service.kernels import linear_logprobs as linear
from tests.kernels.gpu.device import DEVICE

LIMITS = {"matrix_flops_per_second": 1e12, "copy_bytes_per_second": 1e11}


def raising(hidden: Sequence[Tensor], weight_V_H: Tensor, targets_T: Tensor) -> Work:
    """Work that begins and then fails."""

    def work(_: int) -> None:
        raise RuntimeError("no kernel image is available")

    return work


def test_a_peer_that_fails_costs_its_own_figure_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """One cannot even be imported."""
    no_module = SimpleNamespace(make=lambda *_: __import__("no_such_module"))
    peers = {"one": ("torch", no_module.make), "two": ("torch", raising)}
    monkeypatch.setattr(gpu_linear, "PEERS", peers)
    figure = gpu_linear.linear_figure(DRY, 1, str(DEVICE), LIMITS)
    assert "no_such_module" in figure["sides"]["one"]["failed"]
    assert "no kernel image" in figure["sides"]["two"]["failed"]
    assert figure["sides"]["fused"]["seconds"] > 0
    assert not is_wrong(figure)
    assert figure["floor_seconds"] == figure["bytes"] / LIMITS["copy_bytes_per_second"]
    assert [t["met"] for t in figure["targets"] if t["what"].endswith("'s speed")] == [None, None]


@pytest.mark.parametrize("field", ["logprobs_T", "entropies_T", "ranks_T"])
def test_wrong_numbers_are_noticed(field: str, monkeypatch: pytest.MonkeyPatch) -> None:
    right = linear.linear_logprobs

    def wrong(*given: Any, **named: Any) -> linear.LinearLogprobs:
        found = right(*given, **named)
        if named["route"] != "tiled":
            return found
        off = getattr(found, field) + (1 if field == "ranks_T" else 1e-3)
        return replace(found, **{field: off})

    monkeypatch.setattr(linear, "linear_logprobs", wrong)
    figure = gpu_linear.linear_figure(DRY, 1, str(DEVICE), LIMITS)
    assert is_wrong(figure)
    assert sum(not check["met"] for check in figure["checks"]) == 1
