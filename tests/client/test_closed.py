"""A client that was closed says so, in this package's own words, whatever it is asked."""

import threading

import grpc
import grpc.aio
import pytest

from scoring_client import (
    AdminClient,
    AsyncAdminClient,
    AsyncScoringClient,
    CancelledCallError,
    ClosedClientError,
    ScoringClient,
)
from tests.client.toy_server import ToyServer
from tests.client.toy_weights import WeightsServer
from tests.e2e.processes import until

GROUPS = [([1], [[2]]), ([1], [[3]])]
SCORING = {
    "score": (GROUPS,),
    "score_iter": (GROUPS,),
    "tokenize": (["a"],),
    "model_info": (),
    "wait_ready": (),
    "wait_for_version": (1,),
}
ADMIN = {
    "get_weights": ((), {}),
    "drain": ((), {}),
    "takes_updates": ((), {}),
    "push_weights": (({},), {"version": 1}),
}
CLOSED = r"^this client was closed$"


def call(client, method, arguments, options=None):
    answer = getattr(client, method)(*arguments, **(options or {}))
    return list(answer) if method.endswith("_iter") else answer


async def acall(client, method, arguments, options=None):
    answer = getattr(client, method)(*arguments, **(options or {}))
    return [part async for part in answer] if method.endswith("_iter") else await answer


@pytest.mark.parametrize("parts", [None, 1])
@pytest.mark.parametrize("method", SCORING)
def test_a_closed_client(runner, method, parts):
    client = ScoringClient("127.0.0.1:1", tokens_per_part=parts)
    client.close()
    with pytest.raises(ClosedClientError, match=CLOSED) as raised:
        call(client, method, SCORING[method])
    assert isinstance(raised.value, CancelledCallError)
    assert isinstance(raised.value, ValueError)
    assert raised.value.code is grpc.StatusCode.CANCELLED

    async def main():
        client = AsyncScoringClient("127.0.0.1:1", tokens_per_part=parts)
        await client.close()
        await acall(client, method, SCORING[method])

    with pytest.raises(ClosedClientError, match=CLOSED):
        runner.run(main())


@pytest.mark.parametrize("method", ADMIN)
def test_a_closed_admin_client(runner, method):
    client = AdminClient("127.0.0.1:1")
    client.close()
    with pytest.raises(ClosedClientError, match=CLOSED):
        call(client, method, *ADMIN[method])

    async def main():
        client = AsyncAdminClient("127.0.0.1:1")
        await client.close()
        await acall(client, method, *ADMIN[method])

    with pytest.raises(ClosedClientError, match=CLOSED):
        runner.run(main())


def test_a_channel_that_its_owner_closed(runner):
    channel = grpc.insecure_channel("127.0.0.1:1")
    channel.close()
    with pytest.raises(ClosedClientError, match=CLOSED):
        ScoringClient(channel=channel).score(GROUPS)

    async def main():
        channel = grpc.aio.insecure_channel("127.0.0.1:1")
        await channel.close()
        await AsyncScoringClient(channel=channel).score(GROUPS)

    with pytest.raises(ClosedClientError, match=CLOSED):
        runner.run(main())


def closing_once(asked, client):
    def close():
        until(asked)
        client.close()

    thread = threading.Thread(target=close)
    thread.start()
    return thread


@pytest.mark.parametrize("parts", [None, 1])
def test_a_client_that_is_closed_while_its_call_runs(parts):
    hold = threading.Event()
    with ToyServer(hold=hold) as server:
        client = ScoringClient(server.target, tokens_per_part=parts)
        # Not between its parts: one that begins after that finds a closed client.
        requests = 1 if parts is None else len(GROUPS)
        thread = closing_once(lambda: len(server.requests) == requests, client)
        with pytest.raises(ClosedClientError, match="its client was closed while it ran"):
            client.score(GROUPS)
        thread.join()


def test_an_admin_client_that_is_closed_while_its_call_runs():
    asked, go_on = threading.Event(), threading.Event()

    class Slow(WeightsServer):
        def GetWeights(self, request, context):  # noqa: N802
            asked.set()
            go_on.wait(10)
            return super().GetWeights(request, context)

    with Slow({}) as server:
        client = AdminClient(server.target)
        thread = closing_once(asked.is_set, client)
        with pytest.raises(ClosedClientError, match="its client was closed while it ran"):
            client.get_weights()
        go_on.set()
        thread.join()
