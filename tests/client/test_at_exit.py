"""Programs end, whatever they still hold of a call."""

import subprocess
import sys

import pytest

from tests.client.toy_server import ToyServer

BLOCKING = """
import sys
from scoring_client import ScoringClient

client = ScoringClient(sys.argv[1], tokens_per_part=int(sys.argv[2]))
held = getattr(client, sys.argv[3])([([1, 2], [[3] * 40])] * 12, timeout=None)
print(next(held).group_index)
"""
ASYNCHRONOUS = """
import asyncio, sys
from scoring_client import AsyncScoringClient

client = AsyncScoringClient(sys.argv[1], tokens_per_part=int(sys.argv[2]))
held = getattr(client, sys.argv[3])([([1, 2], [[3] * 40])] * 12, timeout=None)

async def main():
    print((await anext(held)).group_index)

asyncio.run(main())
"""


@pytest.mark.parametrize("program", [BLOCKING, ASYNCHRONOUS], ids=["sync", "async"])
@pytest.mark.parametrize("method", ["score_iter", "score_slices"])
@pytest.mark.parametrize("tokens_per_part", [50, 10_000])
def test_a_program_that_holds_an_iterator_ends_without_a_word(program, method, tokens_per_part):
    # A second lies between any two results: threads wait for the next when the program ends.
    with ToyServer(step_delay=1.0, max_slice=40) as server:
        done = subprocess.run(
            [sys.executable, "-c", program, server.target, str(tokens_per_part), method],
            capture_output=True, text=True, timeout=60, check=True,
        )  # fmt: skip
        assert server.cancelled.wait(timeout=20)
    assert done.stdout.strip() in {str(group) for group in range(12)}
    assert done.stderr == ""
