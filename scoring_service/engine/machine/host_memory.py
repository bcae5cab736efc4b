"""How much of the host's memory is left."""

from __future__ import annotations

from pathlib import Path

_CONTROL_GROUP = Path("/sys/fs/cgroup")
"""In a container, its own."""


def free_host_memory() -> int:
    """Bytes that this process could still take, of the machine's and of its control group's."""
    free = 0
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemAvailable:"):
            free = int(line.split()[1]) << 10
    limit, used = _CONTROL_GROUP / "memory.max", _CONTROL_GROUP / "memory.current"
    if limit.is_file() and used.is_file() and limit.read_text().strip() != "max":
        taken = int(used.read_text()) - _droppable()
        free = min(free, int(limit.read_text()) - taken)
    return max(0, free)


def _droppable() -> int:
    """Bytes of files that were read and are not in use: the group's, but free for the asking.

    Weights that were just loaded are among them. The kubelet leaves them out as well.
    """
    stat = _CONTROL_GROUP / "memory.stat"
    if stat.is_file():
        for line in stat.read_text().splitlines():
            name, _, value = line.partition(" ")
            if name == "inactive_file":
                return int(value)
    return 0
