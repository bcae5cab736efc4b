"""What pushes do about page faults, counted."""

import platform
import subprocess
import sys

import pytest

FAULTS = """
import resource
from scoring_client.weights.message_memory import keep_message_memory

source = memoryview(bytearray(2 << 20))

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(20):
        held = [b"".join((b"head", source)) for _ in range(6)]
        del held
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

faults()
without = faults()
keep_message_memory()
faults()
print(without, faults())
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other C libraries take no notice")
def test_memory_of_messages_is_used_again():
    done = subprocess.run(
        [sys.executable, "-c", FAULTS], capture_output=True, text=True, check=True, timeout=60
    )
    without, kept = map(int, done.stdout.split())
    # 120 messages of 512 pages; the kernel may give several pages for one fault.
    assert without > 1000
    assert kept < without / 20
