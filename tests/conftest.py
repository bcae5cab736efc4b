"""Without a GPU, Triton is imported here, before the libraries that would import it themselves.

Triton decides when it is imported whether kernels are compiled or interpreted. The variable that
tells it so is taken back at once: processes that tests start must not inherit it.
"""

from __future__ import annotations

import importlib.util
import itertools
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

_WAITING = ("tests/weights/", "tests/chaos/", "tests/e2e/", "tests/plan/", "tests/helm/")
"""Where tests wait for servers more than they compute; they are long, too."""

_COMPUTING = "tests/kernels/"
"""Where they compute longest."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files that wait by turns with files that compute, so that few cores always have work.

    Long ones come first: at the end no process is left alone with one.
    """
    files: dict[str, list[pytest.Item]] = {}
    for item in items:
        files.setdefault(item.nodeid.partition("::")[0], []).append(item)
    names = sorted(files, key=lambda name: not name.startswith(_COMPUTING))
    waiting = [name for name in names if name.startswith(_WAITING)]
    computing = [name for name in names if not name.startswith(_WAITING)]
    turns = itertools.zip_longest(waiting, computing)
    items[:] = [item for turn in turns for name in turn if name is not None for item in files[name]]
