"""On a CPU nothing of Triton is needed, or touched."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from scoring_service.kernels import dispatch

WITHOUT_TRITON = """
import sys

sys.modules["triton"] = None  # importing it fails
import numpy, torch
from scoring_service.engine.loading import loader
from scoring_service.engine.worker import service_loop
from scoring_service.engine.worker import process as worker
from scoring_service.kernels.dispatch import linear_route, make_tile
from scoring_service.kernels.linear_processed_logprobs import linear_processed_logprobs

ids = numpy.array([1], dtype=numpy.int32)
print(type(make_tile(torch.randn(1, 50), 0.7, ids, None)).__name__)
print(linear_route(torch.device("cpu"), 1))
hidden = torch.randn(2, 4, requires_grad=True)
linear_processed_logprobs(hidden, torch.randn(9, 4), torch.tensor([1, 2]), top_k=3).sum().backward()
print(any(name.startswith("scoring_service.kernels.gpu") for name in sys.modules))
"""


def test_a_machine_without_triton_computes_on_its_cpu() -> None:
    found = subprocess.run(
        [sys.executable, "-c", WITHOUT_TRITON], capture_output=True, text=True, check=True
    )
    assert found.stdout.split() == ["EagerTile", "eager", "False"]


@pytest.mark.parametrize(
    ("capability", "installed", "want"),
    [((9, 0), True, "triton"), ((8, 0), True, "triton"), ((7, 5), True, "eager"),
     ((9, 0), False, "eager")],
)  # fmt: skip
def test_what_a_cuda_device_gets(
    capability: tuple[int, int], installed: bool, want: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Triton from Ampere on, where it is installed; the kernels are compiled for no older one."""
    dispatch._has_triton.cache_clear()
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _index: capability)
    monkeypatch.setattr(
        dispatch.importlib.util, "find_spec", lambda _name: object() if installed else None
    )
    assert dispatch.backend(torch.device("cuda", 0)) == want
    assert dispatch.backend(torch.device("cpu")) == "eager"
    dispatch._has_triton.cache_clear()


def test_a_device_goes_without_kernels_that_were_found_wanting(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It alone, by whichever of its names; its attention is another kernel."""
    monkeypatch.setattr(dispatch, "_has_triton", lambda _index: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 1)
    unnamed, second, first = (torch.device(name) for name in ("cuda", "cuda:1", "cuda:0"))
    with dispatch.without_triton(unnamed):
        assert [dispatch.backend(d) for d in (second, unnamed, first)] == ["eager"] * 2 + ["triton"]
        assert dispatch.attends_by_triton(second)
    assert dispatch.backend(second) == "triton"
