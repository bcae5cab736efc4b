"""The kernels run on the GPU where there is one, else on CPU tensors in Triton's interpreter."""

from __future__ import annotations

import importlib
from collections.abc import Iterator

import pytest
import torch

pytest.importorskip("triton", reason="Triton is published for Linux only")
KERNELS = (
    "scoring_service.kernels.gpu.attention",
    "scoring_service.kernels.gpu.body",
    "scoring_service.kernels.gpu.gradient",
    "scoring_service.kernels.gpu.write_kv",
    "scoring_service.kernels.gpu.linear_head",
    "scoring_service.kernels.gpu.linear_race",
    "scoring_service.kernels.gpu.tile",
    "tests.kernels.gpu.small_kernels",
    "tests.kernels.gpu.wrong_kernels",
)
INTERPRETED = not torch.cuda.is_available()

if INTERPRETED:
    # Kernels are made for the interpreter, or not, when their modules are imported.
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRITON_INTERPRET", "1")
        for module in KERNELS:
            importlib.import_module(module)


@pytest.fixture(scope="module", autouse=True)
def interpreter() -> Iterator[None]:
    """Triton asks again while a kernel runs."""
    with pytest.MonkeyPatch.context() as patch:
        if INTERPRETED:
            patch.setenv("TRITON_INTERPRET", "1")
        yield
