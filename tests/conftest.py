"""Without a GPU, Triton is imported here, before the libraries that would import it themselves.

Triton decides when it is imported whether kernels are compiled or interpreted. The variable that
tells it so is taken back at once: processes that tests start must not inherit it.
"""

from __future__ import annotations

import importlib.util
import shutil
from pathlib import Path

import pytest

from tests.intensity import SOAK


def has_gpu(devices: Path = Path("/dev")) -> bool:
    """As torch would tell, which cannot be asked: it would import Triton.

    A container may have the device without the program; under WSL there is the program alone.
    """
    return any(devices.glob("nvidia[0-9]*")) or shutil.which("nvidia-smi") is not None


if importlib.util.find_spec("triton") is not None and not has_gpu():
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRITON_INTERPRET", "1")
        import triton  # noqa: F401

if importlib.util.find_spec("hypothesis") is not None:
    from hypothesis import settings

    settings.register_profile("project", deadline=None, derandomize=not SOAK, print_blob=True)
    settings.load_profile("project")

_LONG = ("tests/weights/", "tests/chaos/", "tests/e2e/", "tests/plan/", "tests/helm/")
"""Where files have few tests that take long."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Long files first: at the end no process is left alone with one."""
    items.sort(key=lambda item: not item.nodeid.startswith(_LONG))
