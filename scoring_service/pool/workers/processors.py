"""How many processors this process may keep busy."""

from __future__ import annotations

import math
import os
from pathlib import Path

_QUOTA = Path("/sys/fs/cgroup/cpu.max")
_OLD_QUOTA = Path("/sys/fs/cgroup/cpu/cpu.cfs_quota_us")
_OLD_PERIOD = Path("/sys/fs/cgroup/cpu/cpu.cfs_period_us")


def usable_processors() -> int:
    """Those that the process may run on, and no more than its container has time of.

    Threads beyond a container's quota wait for one another: all of them are stopped until the next
    period, in the middle of what the others wait for.
    """
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return max(1, math.ceil(min(allowed or 1, processor_quota())))


def processor_quota() -> float:
    """Processors that the control group has time of, of either version; inf without a limit."""
    try:
        if _QUOTA.is_file():
            quota, period = _QUOTA.read_text().split()
        else:
            quota, period = _OLD_QUOTA.read_text(), _OLD_PERIOD.read_text()
        return float(quota) / float(period) if float(quota) > 0 else math.inf
    except (OSError, ValueError):  # no control group, or "max"
        return math.inf
