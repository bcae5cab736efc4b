"""Workers that are forked, as PyTorch's DataLoader does on Linux."""

import os
import socket
import subprocess
import sys

import pytest

TRAINER = '''
import asyncio, os, sys, threading, time
from scoring_client import AsyncScoringClient, ScoringClient, ScoringError, UnavailableError

ONE = [([1, 2], [[3, 4]])]
nowhere = ScoringClient("127.0.0.1:1", max_attempts=1)

def forked(ask):
    """What a call in a worker comes to: its exit status."""
    worker = os.fork()
    if worker == 0:
        try:
            ask()
        except UnavailableError:
            os._exit(10)  # nobody listens there, as gRPC found out
        except ScoringError as error:
            os._exit(20 if "forked while its parent was asking" in str(error) else 30)
        os._exit(40)
    return os.waitstatus_to_exitcode(os.waitpid(worker, 0)[1])

def score():
    return forked(lambda: nowhere.score(ONE, timeout=20))

def beside_a_call(silent):
    yield score()
    client = ScoringClient(silent)  # accepts connections, and never answers
    threading.Thread(target=lambda: client.score(ONE), daemon=True).start()
    time.sleep(0.3)
    yield score()
    yield forked(lambda: nowhere.model_info(timeout=20))
    yield forked(lambda: ScoringClient("127.0.0.1:1").wait_ready(20))

async def in_a_loop():
    async with AsyncScoringClient("127.0.0.1:1", max_attempts=1) as client:
        try:
            await client.score(ONE, timeout=20)
        except UnavailableError:
            return score()

print(*([asyncio.run(in_a_loop())] if sys.argv[1] == "loop" else beside_a_call(sys.argv[1])))
sys.stdout.flush()
os._exit(0)
'''


def worker_statuses(argument):
    environment = {k: v for k, v in os.environ.items() if k != "GRPC_ENABLE_FORK_SUPPORT"}
    done = subprocess.run(
        [sys.executable, "-c", TRAINER, argument],
        env=environment, capture_output=True, text=True, timeout=60, check=True,
    )  # fmt: skip
    return done.stdout.split()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks")
def test_a_worker_of_a_busy_trainer_is_told_instead_of_hanging():
    with socket.create_server(("127.0.0.1", 0)) as silence:
        statuses = worker_statuses(f"127.0.0.1:{silence.getsockname()[1]}")
    # The worker of an idle trainer asks as any process does.
    assert statuses == ["10", "20", "20", "20"]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks")
def test_a_loop_with_a_client_keeps_grpc_busy_by_itself():
    assert worker_statuses("loop") == ["20"]
