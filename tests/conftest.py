"""Without a GPU, Triton is imported here, before the libraries that would import it themselves.

Triton decides when it is imported whether kernels are compiled or interpreted. The variable that
tells it so is taken back at once: processes that tests start must not inherit it.

And in CI a test that is skipped fails, but for the reasons that are listed here.
"""

from __future__ import annotations

import importlib.util
import itertools
import os
import shutil
from collections.abc import Generator
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

MAY_BE_SKIPPED = (
    "minutes: ",  # measures SmolLM2, which is asked for by name (make test-mismatch)
    # What the processor or the network of some machines has not.
    "no bf16 products on this machine",
    "no IPv6 here",
    # What a container need not be allowed, and programs of the system that it need not have.
    "no network namespace can be made here",
    "no namespaces for processes",
    "needs root, unshare and setpriv",
    "not possible here",
    "makes its certificate with openssl",
    "needs openssl and curl",
    "no git checkout to clone",
)
"""How the reasons begin that CI allows. What `make install` installs is no such reason."""


def refuse_skip(report: pytest.TestReport | pytest.CollectReport) -> None:
    """In CI, makes a failure of a skip whose reason is not listed."""
    if os.environ.get("CI") != "true" or not report.skipped or hasattr(report, "wasxfail"):
        return
    assert isinstance(report.longrepr, tuple)
    reason = report.longrepr[2].removeprefix("Skipped: ")
    if not reason.startswith(MAY_BE_SKIPPED):
        report.outcome = "failed"
        report.longrepr = f"CI skips nothing but for the reasons in tests/conftest.py: {reason}"


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    refuse_skip(report)
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report() -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    report = yield
    refuse_skip(report)
    return report


_LAST = "tests/chaos/"
"""Faults, which are about time as well: no process begins with them while another file is left."""

_WAITING = ("tests/weights/", "tests/e2e/", "tests/plan/", "tests/helm/")
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
    last = [name for name in names if name.startswith(_LAST)]
    waiting = [name for name in names if name.startswith(_WAITING)]
    computing = [name for name in names if not name.startswith((_LAST, *_WAITING))]
    turns = [name for turn in itertools.zip_longest(waiting, computing) for name in turn]
    items[:] = [item for name in (*turns, *last) if name is not None for item in files[name]]
