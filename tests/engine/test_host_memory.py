"""What a container may still take, from files as the kernel writes them."""

from __future__ import annotations

from pathlib import Path

import pytest

from scoring_service.engine.machine import host_memory

MIB = 1 << 20


@pytest.mark.parametrize(
    ("files", "free"),
    [
        ({"memory.max": f"{64 * MIB}\n", "memory.current": f"{24 * MIB}\n"}, 40 * MIB),
        (
            {
                "memory.max": f"{64 * MIB}\n",
                "memory.current": f"{60 * MIB}\n",
                "memory.stat": f"anon {5 * MIB}\nfile {55 * MIB}\ninactive_file {50 * MIB}\n",
            },
            54 * MIB,
        ),
        ({"memory.max": f"{MIB}\n", "memory.current": f"{2 * MIB}\n"}, 0),
    ],
    ids=["used", "files that could be dropped", "beyond the limit"],
)
def test_a_container_has_what_its_limit_leaves(
    files: dict[str, str], free: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    monkeypatch.setattr(host_memory, "_CONTROL_GROUP", tmp_path)
    assert host_memory.free_host_memory() == free


def test_without_a_limit_the_machine_decides(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "memory.max").write_text("max\n")
    (tmp_path / "memory.current").write_text("1\n")
    monkeypatch.setattr(host_memory, "_CONTROL_GROUP", tmp_path)
    assert host_memory.free_host_memory() > MIB
