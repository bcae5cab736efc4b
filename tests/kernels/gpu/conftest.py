"""The kernels run on the GPU where there is one, else on CPU tensors in Triton's interpreter."""

from __future__ import annotations

import importlib
import os
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


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Leaves the part of the tests that `benchmarks.gpu_tests` asks a process for."""
    if part := os.environ.get("GPU_TESTS_PART"):
        number, count = map(int, part.split("/"))
        places: dict[str, int] = {}
        items[:] = [
            item
            for item in items
            if places.setdefault(shared_by(item), len(places)) % count == number
        ]


def shared_by(item: pytest.Item) -> str:
    """What tests have in common that one process should run: the model of their fixture."""
    call = getattr(item, "callspec", None)
    return item.nodeid if call is None else str(call.params.get("pair", item.nodeid))


@pytest.fixture(scope="module", autouse=True)
def interpreter() -> Iterator[None]:
    """Triton asks again while a kernel runs."""
    with pytest.MonkeyPatch.context() as patch:
        if INTERPRETED:
            patch.setenv("TRITON_INTERPRET", "1")
        yield
