"""What the kernel says of processes that it killed for want of memory."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path


def oom_kills(root: Path = Path("/")) -> int | None:
    """How often that happened in this control group; None = it cannot be told.

    See "memory.events" in the kernel's cgroup-v2.rst, and "memory.oom_control" in its
    cgroup-v1/memory.rst.
    """
    with contextlib.suppress(OSError):
        for path in _counters(root, (root / "proc/self/cgroup").read_text()):
            with contextlib.suppress(OSError, ValueError, IndexError):
                words = path.read_text().split()
                return int(words[words.index("oom_kill") + 1])
    return None


def _counters(root: Path, groups: str) -> Iterator[Path]:
    """Where the count may be: of version 2, of version 1, and of that as a container sees it."""
    mounted = root / "sys/fs/cgroup"
    for line in groups.splitlines():
        _, controllers, group = line.split(":", 2)
        if not controllers:
            yield mounted / group.lstrip("/") / "memory.events"
        elif "memory" in controllers.split(","):
            yield mounted / "memory" / group.lstrip("/") / "memory.oom_control"
            yield mounted / "memory/memory.oom_control"
