"""Where the kernel counts what it killed for memory, in both versions of control groups."""

from __future__ import annotations

from pathlib import Path

import pytest

from scoring_service.pool.workers.oom_kills import oom_kills

V2 = "0::/pods/one\n"
V1 = "9:name=systemd:/\n4:cpu,memory:/pods/one\n0::/\n"


@pytest.mark.parametrize(
    ("groups", "path", "text", "count"),
    [
        (V2, "pods/one/memory.events", "low 0\nmax 31\noom 2\noom_kill 3\noom_group_kill 0\n", 3),
        ("0::/\n", "memory.events", "oom 0\noom_kill 0\n", 0),
        (V1, "memory/pods/one/memory.oom_control", "under_oom 0\noom_kill 5\n", 5),
        (V1, "memory/memory.oom_control", "under_oom 0\noom_kill 1\n", 1),
        (V2, "pods/one/memory.events", "low 0\n", None),
        (V2, "elsewhere", "", None),
        ("4:cpu:/pods/one\n", "pods/one/memory.events", "oom_kill 3\n", None),
    ],
)
def test_kills_for_memory(
    tmp_path: Path, groups: str, path: str, text: str, count: int | None
) -> None:
    for name, content in (("proc/self/cgroup", groups), (f"sys/fs/cgroup/{path}", text)):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(content)
    assert oom_kills(tmp_path) == count


def test_where_there_are_no_control_groups(tmp_path: Path) -> None:
    assert oom_kills(tmp_path) is None
