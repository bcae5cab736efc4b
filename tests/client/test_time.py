"""Deadlines, cancellation, retries' timing, and waiting for a server."""

import asyncio
import math
import socket
import threading
import time
from collections.abc import Iterator

import grpc
import pytest

from scoring_client import (
    AdminClient,
    AsyncAdminClient,
    AsyncScoringClient,
    CancelledCallError,
    DeadlineError,
    InvalidRequestError,
    ScoringClient,
    UnavailableError,
)
from scoring_client.connection.admin_channel import AdminSettings
from scoring_client.connection.retry import Attempts, RetryPolicy
from tests.client.toy_server import Fault, ToyServer
from tests.client.truth import assert_scores

ONE = [([1, 2], [[3, 4]])]
NO_LIMIT = 2.0**63
"""What gRPC says is left, in seconds, where there is no deadline."""
NO_GRPC_RETRIES = [("grpc.enable_retries", 0)]


@pytest.mark.parametrize("through", ["client", "call"])
def test_the_timeout_ends_a_call_and_the_server_learns_of_it(ask, through):
    timeout = {"timeout": 0.3}
    client, call = (timeout, {}) if through == "client" else ({}, timeout)
    with ToyServer(hold=threading.Event()) as server:
        begin = time.monotonic()
        with pytest.raises(DeadlineError, match="1 of 1 items unfinished") as raised:
            ask(server.target, "score", ONE, client=client, **call)
        assert raised.value.message == (
            "the timeout of 0.3 s passed; 1 of 1 items unfinished; raise timeout= or add replicas"
        )
        assert time.monotonic() - begin < 2
        assert server.cancelled.wait(timeout=2)
    assert isinstance(raised.value, TimeoutError)


@pytest.mark.parametrize("method", ["score", "topk_logprobs", "sample"])
def test_a_timeout_says_how_to_keep_what_was_finished(ask, method):
    """Items of one token: each result of the server is a whole one."""
    groups = [([1], [[2], [3]])]
    arguments = {"score": [groups], "topk_logprobs": [groups, 2], "sample": [[[1], [2]]]}[method]
    options = {"max_tokens": 1, "ignore_eos": True} if method == "sample" else {}
    late = Fault(grpc.StatusCode.DEADLINE_EXCEEDED, "late", "DEADLINE_EXCEEDED", after_results=1)
    lost = f"; what is finished (1 of 2 items) is lost: {method}_iter yields each as it ends"
    with ToyServer(faults=[late, late]) as server:
        with pytest.raises(DeadlineError) as raised:
            ask(server.target, method, *arguments, **options)
        assert str(raised.value) == f"late (1 of 2 items unfinished){lost}"
        with pytest.raises(DeadlineError) as raised:
            ask(server.target, f"{method}_iter", *arguments, **options)
        assert "lost" not in str(raised.value)


def test_the_call_s_timeout_wins_over_the_clients(ask):
    with ToyServer(step_delay=0.2, max_slice=1) as server:
        results = ask(server.target, "score", ONE, client={"timeout": 0.05}, timeout=None)
    assert_scores(results[0][0], [1, 2], [3, 4])


@pytest.mark.parametrize("timeout", [1e10, math.inf])
def test_more_seconds_than_grpc_can_count_are_no_limit(ask, timeout):
    with ToyServer() as server:
        assert ask(server.target, "score", ONE, timeout=timeout)[0][0].error is None
        assert ask(server.target, "model_info", timeout=timeout).name == "toy"


def test_the_timeout_holds_for_all_attempts_together(ask, quick_retry):
    faults = [Fault(after_results=1)] * 50
    with ToyServer(faults=faults, step_delay=0.15, max_slice=9) as server:
        groups = [([1], [[token]]) for token in range(20)]
        begin = time.monotonic()
        with pytest.raises((DeadlineError, UnavailableError)):
            ask(server.target, "score", groups, timeout=0.8)
        assert 0.4 < time.monotonic() - begin < 2
        assert len(server.requests) > 2


def test_leaving_an_iterator_cancels_the_call():
    with ToyServer(max_slice=1, step_delay=0.05) as server, ScoringClient(server.target) as client:
        slices = client.score_slices([([1], [list(range(100))])])
        next(slices)
        assert not server.cancelled.is_set()
        slices.close()
        assert server.cancelled.wait(timeout=2)


def test_cancelling_a_task_cancels_the_call(runner):
    async def main(server):
        async with AsyncScoringClient(server.target) as client:
            task = asyncio.ensure_future(client.score([([1], [list(range(100))])]))
            assert await asyncio.to_thread(server.asked.wait, 5)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert await asyncio.to_thread(server.cancelled.wait, 2)

    with ToyServer(max_slice=1, step_delay=0.05) as server:
        runner.run(main(server))


def test_many_calls_at_once_share_one_client(runner):
    def groups(i):
        return [([i], [[i, i + 1], [i + 2]])]

    async def main(server):
        async with AsyncScoringClient(server.target) as client:
            calls = (client.score(groups(i)) for i in range(20))
            return await asyncio.gather(*calls)

    with ToyServer(max_slice=1) as server:
        for i, results in enumerate(runner.run(main(server))):
            assert_scores(results[0][0], [i], [i, i + 1])
        with ScoringClient(server.target) as client:
            answers = {}

            def call(i):
                answers[i] = client.score(groups(i))

            threads = [threading.Thread(target=call, args=(i,)) for i in range(20)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
    for i in range(20):
        assert_scores(answers[i][0][1], [i], [i + 2])


def test_wait_ready_waits_for_a_model_that_loads(ask, monkeypatch):
    monkeypatch.setattr("scoring_client.client.READY_POLL_SECONDS", 0.02)
    monkeypatch.setattr("scoring_client.aio.READY_POLL_SECONDS", 0.02)
    loading = Fault(message="the model loads", reason="LOADING")
    with ToyServer(unary_faults=[loading] * 6) as server:
        info = ask(server.target, "wait_ready", 20, client={"channel_options": NO_GRPC_RETRIES})
        assert len(server.metadata) == 7
    assert info.name == "toy"


def test_wait_ready_without_time_looks_once(ask):
    with ToyServer() as server:
        ask(server.target, "wait_ready", 5)
        assert ask(server.target, "wait_ready", 0.05).name == "toy"
        with pytest.raises(UnavailableError):
            ask("127.0.0.1:1", "wait_ready", 0)


def test_wait_ready_gives_up(ask):
    begin = time.monotonic()
    with pytest.raises(UnavailableError, match=r"no server was ready within 0\.3 s"):
        ask("127.0.0.1:1", "wait_ready", 0.3)
    assert time.monotonic() - begin < 3


def test_short_calls_are_tried_again_by_grpc(ask):
    with ToyServer(unary_faults=[Fault(), Fault()]) as server:
        assert ask(server.target, "list_models")[0].name == "toy"
        assert len(server.metadata) == 3


# Attempts, with a clock of their own


class Clock:
    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now


def unavailable():
    return UnavailableError("gone")


def test_backoff_grows_to_its_limit():
    attempts = Attempts(RetryPolicy(max_attempts=20), None, Clock())
    waits = [attempts.wait_after(unavailable(), progressed=False) for _ in range(12)]
    for index, wait in enumerate(waits):
        base = min(10.0, 0.25 * 3**index)
        assert 0.8 * base <= wait <= 1.2 * base


def test_waits_differ_between_clients():
    policy = RetryPolicy()
    assert len({policy.delay(unavailable(), 1) for _ in range(20)}) > 10


def test_the_server_s_delay_is_kept_and_spread():
    policy = RetryPolicy()
    # After the third failure the backoff alone could be 1.8 s.
    late = [policy.delay(UnavailableError("x", retry_delay=2.0), 3) for _ in range(50)]
    assert min(late) >= 2.0
    waits = [policy.delay(UnavailableError("x", retry_delay=2.0), 1) for _ in range(50)]
    assert min(waits) >= 2.0
    assert max(waits) <= 2.4
    assert max(waits) - min(waits) > 0.05


def test_a_delay_of_the_server_does_not_shorten_the_backoff():
    # A server that loads for a minute and names a second would use up the attempts in seconds.
    attempts = Attempts(RetryPolicy(), None, Clock())
    loading = UnavailableError("loading", retry_delay=1.0)
    waits = [attempts.wait_after(loading, progressed=False) for _ in range(4)]
    assert waits[0] >= 1.0
    assert waits[1] >= 1.0
    assert waits[3] >= 0.8 * 6.75


def test_no_time_is_left():
    clock = Clock()
    attempts = Attempts(RetryPolicy(), 10.0, clock)
    assert attempts.remaining() == 10.0
    clock.now += 9.0
    assert attempts.remaining() == pytest.approx(1.0)
    assert attempts.wait_after(unavailable(), progressed=False) < 1
    clock.now += 0.95
    with pytest.raises(UnavailableError):
        attempts.wait_after(unavailable(), progressed=False)
    clock.now += 1
    with pytest.raises(DeadlineError, match=r"of 10 s passed"):
        attempts.remaining()


def test_progress_starts_the_count_again():
    attempts = Attempts(RetryPolicy(max_attempts=2), None, Clock())
    for _ in range(5):
        attempts.wait_after(unavailable(), progressed=True)
    with pytest.raises(UnavailableError):
        attempts.wait_after(unavailable(), progressed=False)


def test_who_gives_up_says_after_how_many_attempts():
    clock = Clock()
    attempts = Attempts(RetryPolicy(max_attempts=2), 600, clock)
    died = UnavailableError("died", reason="WORKER_DIED")
    attempts.wait_after(died, progressed=False)
    clock.now += 1.5
    with pytest.raises(UnavailableError) as raised:
        attempts.wait_after(died, progressed=False)
    gave_up = "gave up after 2 attempts in 1.5 s: a client's max_attempts= rides out a restart"
    assert raised.value.message == f"died; {gave_up}"
    assert raised.value.reason == "WORKER_DIED"
    # Who asked for one attempt knows.
    with pytest.raises(UnavailableError, match=r"^died$"):
        Attempts(RetryPolicy(max_attempts=1), None).wait_after(died, progressed=False)


def test_there_is_at_least_one_attempt():
    with pytest.raises(ValueError, match="max_attempts"):
        ScoringClient(max_attempts=0)


def test_refusals_of_a_server_that_drains_do_not_count():
    clock = Clock()
    attempts = Attempts(RetryPolicy(max_attempts=2), 60.0, clock)
    draining = UnavailableError("shutting down", reason="DRAINING")
    for _ in range(20):
        assert 0.1 < attempts.wait_after(draining, progressed=False) < 0.5
    with pytest.raises(UnavailableError):
        Attempts(RetryPolicy(max_attempts=1), None).wait_after(draining, progressed=False)
    died = UnavailableError("died", reason="WORKER_DIED")
    attempts.wait_after(died, progressed=False)
    with pytest.raises(UnavailableError, match="died"):
        attempts.wait_after(died, progressed=False)
    # The time is bounded all the same.
    clock.now += 59.9
    with pytest.raises(UnavailableError, match="shutting down"):
        attempts.wait_after(draining, progressed=False)


@pytest.fixture
def silent() -> Iterator[str]:
    """Somebody who takes connections and never says a word."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield f"127.0.0.1:{listener.getsockname()[1]}"


@pytest.mark.parametrize("method", ["wait_ready", "wait_for_version"])
def test_waits_end_in_time_where_nobody_answers(ask, runner, silent, method):
    """A short call's own limit is 30 seconds."""
    arguments = (1,) if method == "wait_for_version" else ()
    kinds = (DeadlineError, UnavailableError)
    begin = time.monotonic()
    with pytest.raises(kinds):
        ask(silent, method, *arguments, timeout=0.2)
    if arguments:
        with AdminClient(silent) as admin, pytest.raises(kinds):
            admin.wait_for_version(1, timeout=0.2)

        async def main():
            async with AsyncAdminClient(silent) as admin:
                await admin.wait_for_version(1, timeout=0.2)

        with pytest.raises(kinds):
            runner.run(main())
    assert time.monotonic() - begin < 10


@pytest.mark.parametrize(
    ("clients", "calls", "limit"),
    [
        (5, {}, 5),
        (600.0, {}, 30),
        (None, {}, 30),
        (math.inf, {}, 30),
        (5, {"timeout": 50}, 50),
        (5, {"timeout": None}, NO_LIMIT),
    ],
)
@pytest.mark.parametrize("method", ["model_info", "list_models", "tokenize"])
def test_the_clients_timeout_holds_for_short_calls_up_to_30_s(ask, method, clients, calls, limit):
    """As the server sees the time that is left: half of it may be gone on a busy machine."""
    with ToyServer() as server:
        arguments = [["a b"]] if method == "tokenize" else []
        ask(server.target, method, *arguments, client={"timeout": clients}, **calls)
        (left,) = server.times_left
    assert limit / 2 < left < limit * 1.5


@pytest.mark.parametrize(("clients", "limit"), [(5, 5), (600.0, 30), (None, 30), (math.inf, 30)])
def test_the_admin_clients_timeout_does_as_well(clients, limit):
    assert AdminSettings("", "", clients, ()).unary_timeout == limit


def test_a_wait_without_a_limit(ask):
    loading = Fault(message="the model loads", reason="LOADING")
    with ToyServer(unary_faults=[loading], version=3) as server:
        client = {"channel_options": NO_GRPC_RETRIES}
        assert ask(server.target, "wait_ready", None, client=client).name == "toy"
        assert ask(server.target, "wait_for_version", 3, None).weight_version == 3
        with pytest.raises(InvalidRequestError, match="timeout: expected seconds or None"):
            ask(server.target, "wait_ready", "soon")


@pytest.mark.parametrize("parts", [None, 10])
def test_closing_an_async_client_ends_its_calls_and_cancels_nobody(runner, parts):
    """A CancelledError would say that the caller's task was cancelled; ``gather`` drops such."""

    async def main(server):
        client = AsyncScoringClient(server.target, tokens_per_part=parts)
        groups = [([1], [list(range(100))])] * 3
        task = asyncio.ensure_future(client.score(groups))
        assert await asyncio.to_thread(server.asked.wait, 5)
        await client.close()
        with pytest.raises(CancelledCallError, match="its client was closed while it ran"):
            await task
        assert not task.cancelled()

    with ToyServer(max_slice=1, step_delay=0.05) as server:
        runner.run(main(server))


def test_waiting_for_a_version(ask):
    with ToyServer() as server:
        server.version = 6
        assert ask(server.target, "wait_for_version", 6).weight_version == 6
        later = threading.Timer(0.2, lambda: setattr(server, "version", 7))
        later.start()
        assert ask(server.target, "wait_for_version", 7, 10).weight_version == 7
        later.join()
        with pytest.raises(DeadlineError):
            ask(server.target, "wait_for_version", 8, 0.05)


def test_waiting_for_a_version_of_a_server_that_starts(ask):
    """It refuses until it was given weights: that is what the wait is for."""
    client = {"channel_options": NO_GRPC_RETRIES}
    awaiting = Fault(message="it waits for weights", reason="AWAITING_WEIGHTS")
    with ToyServer(unary_faults=[awaiting] * 6, version=3) as server:
        info = ask(server.target, "wait_for_version", 3, 20, client=client)
        assert info.weight_version == 3
        assert len(server.metadata) == 7
    with ToyServer(unary_faults=[awaiting] * 1000) as server:
        refused = r"version 3 did not come within 0\.2 s: it waits for weights"
        with pytest.raises(DeadlineError, match=refused):
            ask(server.target, "wait_for_version", 3, 0.2, client=client)
