"""Networks that stall: for a while, for good, and in one direction only."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Iterator

import grpc
import pytest

from tests.chaos.load import Load
from tests.chaos.stalling_network import StallingNamespace, StallingProxy, Way
from tests.e2e.calls import scores, stub_of, top_k_request
from tests.e2e.processes import descriptors, idle, resident, until
from tests.e2e.served import Served, serving
from tests.intensity import SOAK, short_or_long

KEEPALIVE = short_or_long(3, 10)
SHORT_STALL = 0.5
"""Seconds; TCP takes as long again until it tries again."""

Network = StallingProxy | StallingNamespace


@pytest.fixture(params=[StallingProxy, StallingNamespace], ids=["proxy", "namespace"])
def network(request: pytest.FixtureRequest) -> Iterator[Network]:
    try:
        made = request.param()
    except (OSError, subprocess.CalledProcessError) as error:
        why = getattr(error, "stderr", "") or str(error)
        pytest.skip(f"no network namespace can be made here: {why.strip()}")
    with made:
        yield made


def test_a_network_that_stalls(network: Network) -> None:
    """Answers that are late for a while; and clients that are never heard of again."""
    flags = ("--keepalive-seconds", str(KEEPALIVE), "--metrics-port", "0")
    with serving(
        *flags, *network.arguments, launcher=network.prefix, metrics_host=network.host
    ) as server:
        target, elsewhere = network.target(server.ready), network.elsewhere(server.ready)
        a_short_stall_harms_no_call(network, target)
        with stub_of(elsewhere) as stub:
            before = scores(stub)
            list(stub.TopKLogprobs(top_k_request([2] * 3000, k=2048), timeout=120))
        figures = [idle_figures(server)]
        # By a proxy in short form: what it can do that the namespace cannot is to run anywhere.
        short = isinstance(network, StallingProxy) and not SOAK
        for way in [Way.BOTH] if short else Way:
            a_stall_for_good_frees_everything(network, way, target, elsewhere, server, before)
            figures.append(idle_figures(server))
    opened, memory = zip(*figures, strict=True)
    assert max(opened) <= opened[0] + 2
    assert max(memory) - memory[0] < 100 << 20


def a_short_stall_harms_no_call(network: Network, target: str) -> None:
    load = Load(target, threads=2)
    load.learn()
    with load.running():
        for way in Way:
            time.sleep(0.3)
            network.stall(way)
            time.sleep(SHORT_STALL)
            network.flow()
        answered = load.counted().total()
        until(lambda: load.counted().total() > answered + 10)  # calls go on as before
    assert not load.wrong
    assert set(load.counted()) == {"ok"}


def a_stall_for_good_frees_everything(
    network: Network, way: Way, target: str, elsewhere: str, server: Served, before: list[float]
) -> None:
    """The answer, 400 MB of it, is more than any buffer on the way holds."""
    # What the server said when it hung up may have been lost: the caller asks as well.
    options = {"keepalive_time_ms": 11_000, "keepalive_timeout_ms": 4_000}
    with stub_of(target, use_local_subchannel_pool=1, enable_retries=0, **options) as stub:
        call = stub.TopKLogprobs(top_k_request([2] * 3000, k=2048, copies=8), timeout=180)
        next(call)
        next(call)  # the first results
        network.stall(way)
        began = time.monotonic()
        assert server.metrics["scoring_num_requests_running"] == 1
        with stub_of(elsewhere, use_local_subchannel_pool=1) as others:
            assert scores(others) == before, "nobody else notices"
        until(lambda: server.metrics["scoring_num_requests_running"] == 0, patience=6 * KEEPALIVE)
        print(f"{type(network).__name__}, {way.value}: over after {time.monotonic() - began:.1f} s")
        found = server.metrics
        assert found["scoring_queue_taken_tokens"] == found["scoring_unread_reply_bytes"] == 0
        until(lambda: server.metrics["scoring_kv_cache_usage_perc"] == 0.0, patience=10)
        network.flow()
        with pytest.raises(grpc.RpcError) as ended:
            list(call)
        assert ended.value.code() is grpc.StatusCode.UNAVAILABLE, "which clients may try again"
        until(lambda: answers(stub, before), patience=30)


def answers(stub: object, expected: list[float]) -> bool:
    """Whether calls on the same channel find their way again."""
    try:
        return scores(stub) == expected
    except grpc.RpcError as error:
        if error.code() is not grpc.StatusCode.UNAVAILABLE:
            raise
        return False


def idle_figures(server: Served) -> tuple[int, int]:
    """Descriptors and bytes that the server holds when nobody calls."""
    until(lambda: idle(server.process.pid, 0.5))
    return descriptors(server.process.pid), resident(server.process.pid)
