"""Whether tests interpret kernels is decided before torch can be asked for a device."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.conftest import has_gpu


def test_a_device_without_nvidias_program_is_a_gpu(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert not has_gpu(tmp_path)
    (tmp_path / "nvidiactl").touch()
    assert not has_gpu(tmp_path), "the driver alone"
    (tmp_path / "nvidia3").touch()
    assert has_gpu(tmp_path)
