"""Programs end, whatever they still hold of a call."""

import subprocess
import sys

import pytest

from tests.client.toy_server import ToyServer

# What is registered first comes last.
BLOCKING = """
import atexit, sys
atexit.register(lambda: print("closed" if held.gi_frame is None else "open"))
from scoring_client import ScoringClient

client = ScoringClient(sys.argv[1], tokens_per_part=int(sys.argv[2]))
held = getattr(client, sys.argv[3])([([1, 2], [[3] * 40])] * 12, timeout=None)
print(next(held).completion_index)
"""
ASYNCHRONOUS = """
import asyncio, sys
from scoring_client import AsyncScoringClient

client = AsyncScoringClient(sys.argv[1], tokens_per_part=int(sys.argv[2]))
held = getattr(client, sys.argv[3])([([1, 2], [[3] * 40])] * 12, timeout=None)

async def main():
    print((await anext(held)).completion_index)

asyncio.run(main())
print("closed" if held.ag_frame is None else "open")
"""


@pytest.mark.parametrize("program", [BLOCKING, ASYNCHRONOUS], ids=["sync", "async"])
@pytest.mark.parametrize("method", ["score_iter", "score_slices"])
@pytest.mark.parametrize("tokens_per_part", [50, 10_000])
def test_an_iterator_that_a_program_holds_is_closed_before_its_threads_are_gone(
    program, method, tokens_per_part
):
    """Afterwards there are locks that nobody gives back, and some programs stood still."""
    # A second lies between any two results, so that the call is under way.
    with ToyServer(step_delay=1.0, max_slice=40) as server:
        done = subprocess.run(
            [sys.executable, "-c", program, server.target, str(tokens_per_part), method],
            capture_output=True, text=True, timeout=60, check=True,
        )  # fmt: skip
        assert server.cancelled.wait(timeout=20)
    assert done.stdout.split() == ["0", "closed"]
    assert done.stderr == ""
