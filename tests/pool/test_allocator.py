"""Memory that was freed is taken again without asking the kernel for it."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

_PAGE_FAULTS = """
import resource, sys
from scoring_service.allocator import keep_freed_memory

if sys.argv[1] == "keep" and not keep_freed_memory():
    raise SystemExit("glibc did not listen")

def fill():
    for _ in range(50):
        pieces = [bytearray(1 << 19) for _ in range(8)]

fill()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
fill()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def page_faults(mode: str) -> int:
    """Of 200 MB that are written to, 4 MB at a time."""
    command = [sys.executable, "-c", _PAGE_FAULTS, mode]
    return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="mallopt is glibc's")
def test_freed_memory_is_kept_for_the_next_result() -> None:
    assert page_faults("keep") < 500 < page_faults("give back")
