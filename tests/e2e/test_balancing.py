"""Three servers behind one name, one dies, a fourth joins under load: nothing lost or doubled."""

from __future__ import annotations

import asyncio
import signal
import threading
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import numpy as np
import pytest

from scoring_client import AsyncScoringClient, SamplePrompt, ScoringClient
from tests.e2e.name_server import NameServer
from tests.e2e.processes import alive, frozen, until
from tests.e2e.served import PATIENCE, Served

GROUPS = [
    ([g, g + 1, g + 2] * 20, [[(g * 7 + i * c) % 1000 for i in range(40)] for c in (1, 2, 3)])
    for g in range(14)  # 4,200 tokens: more than what is never divided
]
PROMPTS = [SamplePrompt([p + 1, p + 2, p + 3], seed=p, n=4) for p in range(8)]
SAMPLING = {"max_tokens": 12, "ignore_eos": True, "temperature": 0.9}
SHARED = [
    *("--threads", "1", "--preferred-tokens-per-call", "500", "--metrics-port", "0"),
    # So that whoever joins is found soon; what runs on a connection is let to its end.
    *("--max-connection-age", "2", "--log-format", "json"),
]
# gRPC asks again for a name after a second rather than after the client's five.
QUICK = [("grpc.dns_min_time_between_resolutions_ms", 1000)]


class Load:
    """Asks again and again in a thread, and keeps every answer."""

    def __init__(self, ask: Callable[[], list[Any]]) -> None:
        self.answers: list[list[Any]] = []
        self.error: Exception | None = None
        self._ask = ask
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            while not self._stopped.is_set():
                self.answers.append(self._ask())
        except Exception as error:  # noqa: BLE001 - the test's thread looks at it
            self.error = error

    def goes_on(self) -> None:
        """Waits for another answer."""
        before = len(self.answers)
        until(lambda: len(self.answers) > before + 1 or self.error is not None, PATIENCE)
        assert self.error is None, self.error

    def stop(self) -> None:
        """Lets the last call end."""
        self._stopped.set()
        self._thread.join(PATIENCE)
        assert not self._thread.is_alive()
        assert self.error is None, self.error


def score(client: ScoringClient) -> list[Any]:
    return list(client.score_iter(GROUPS))


async def sample(target: str) -> list[Any]:
    async with AsyncScoringClient(target, channel_options=QUICK, tokens_per_part=150) as client:
        return [part async for part in client.sample_iter(PROMPTS, **SAMPLING)]


def assert_each_once(parts: list[Any], reference: dict[tuple[int, int], Any]) -> None:
    """The same items, each of them once, with the same bits."""
    keys = [key_of(part) for part in parts]
    assert sorted(keys) == sorted(reference)
    for key, part in zip(keys, parts, strict=True):
        np.testing.assert_array_equal(part.token_ids, reference[key].token_ids)
        np.testing.assert_array_equal(part.logprobs, reference[key].logprobs)


def key_of(part: Any) -> tuple[int, int]:
    if hasattr(part, "group_index"):
        return part.group_index, part.completion_index
    return part.prompt_index, part.sample_index


def answered(server: Served) -> float:
    metrics = server.metrics
    return metrics.get("scoring_scored_tokens_total", 0) + metrics.get(
        "scoring_sampled_tokens_total", 0
    )


def kill_at_work(server: Served) -> None:
    """kill -9 of the server and its worker while it owes an answer."""
    worker = server.worker_pid
    with frozen(worker):
        until(lambda: server.metrics["scoring_num_requests_running"] >= 1, PATIENCE)
        server.end(signal.SIGKILL)
    until(lambda: not alive(worker))


MIN_SHARE = 1 / 6
"""Of the answered tokens, for each of three servers: half of what is fair, as parts differ in
length and a server whose connection was just asked to go is passed over."""


def check_shares(servers: list[Served], loads: list[Load]) -> None:
    """Each server has its part of what is asked from now on, in the first answers or soon after."""
    before = [answered(server) for server in servers]
    for load in loads:
        load.goes_on()

    def least() -> float:
        grown = [answered(s) - b for s, b in zip(servers, before, strict=True)]
        return min(grown) / sum(grown)

    until(lambda: least() > MIN_SHARE, PATIENCE)


@pytest.mark.timeout(600)
def test_servers_that_die_and_join_under_load_lose_and_double_nothing() -> None:
    with ExitStack() as stack:

        def start(host: str, port: str = "0") -> Served:
            served = Served(["--host", host, "--port", port, *SHARED])
            stack.callback(lambda: served.process.poll() is None and served.end(signal.SIGKILL))
            return served

        first = start("127.0.0.2")
        port = first.listening.rpartition(":")[2]
        hosts = ["127.0.0.2", "127.0.0.3", "127.0.0.4", "127.0.0.5"]
        second, third, fourth = (start(host, port) for host in hosts[1:])
        for server in (first, second, third, fourth):
            assert server.ready
        names = stack.enter_context(NameServer(hosts[:3]))
        target = names.target(int(port))

        with ScoringClient(first.ready) as alone:
            scores = {key_of(part): part for part in alone.score_iter(GROUPS)}
            samples = {key_of(part): part for part in alone.sample_iter(PROMPTS, **SAMPLING)}

        client = stack.enter_context(ScoringClient(target, channel_options=QUICK))
        loads = [Load(lambda: score(client)), Load(lambda: asyncio.run(sample(target)))]
        check_shares([first, second, third], loads)

        kill_at_work(first)
        assert answered(fourth) == 0, "nobody knows of it yet"
        names.addresses = hosts[1:]
        until(lambda: answered(fourth) > 0, PATIENCE)
        for load in loads:
            load.goes_on()
            load.stop()

    for load, reference in zip(loads, (scores, samples), strict=True):
        assert len(load.answers) >= 6
        for parts in load.answers:
            assert_each_once(parts, reference)
