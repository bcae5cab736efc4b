"""How long the machine itself keeps a process waiting that asks for next to nothing.

A process that sleeps a millisecond at a time, and what it overslept: what others' latencies cannot
be below, whatever they do.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

PROGRAM = """
import gc, json, select, sys, time
gc.disable()
late = []
while not select.select([sys.stdin], [], [], 0)[0]:
    began = time.perf_counter()
    time.sleep(0.001)
    late.append(time.perf_counter() - began - 0.001)
print(json.dumps(late))
"""


@contextmanager
def ticking() -> Iterator[list[float]]:
    """A list that has the seconds of each oversleep once this context is left."""
    late: list[float] = []
    process = subprocess.Popen(
        [sys.executable, "-S", "-c", PROGRAM],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        yield late
    finally:
        printed, _ = process.communicate("\n")
        late.extend(json.loads(printed))
