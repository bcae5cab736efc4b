"""What is said when the time is over: who did not answer, and why, where that was heard."""

import asyncio
import threading

import pytest

from scoring_client import AdminClient, AsyncAdminClient, DeadlineError, UnavailableError
from scoring_client.connection.retry import telling
from tests.client.toy_server import Fault, ToyServer
from tests.client.toy_weights import WeightsServer

NO_GRPC_RETRIES = {"channel_options": [("grpc.enable_retries", 0)]}
NOBODY = "127.0.0.1:1"


class Silent(ToyServer):
    """From the given call on it does not answer in time."""

    def __init__(self, answers, **kw):
        super().__init__(**kw)
        self.left, self.ended = answers, threading.Event()

    def __exit__(self, *error):
        self.ended.set()
        super().__exit__(*error)

    def GetModelInfo(self, request, context):  # noqa: N802
        self.left -= 1
        if self.left < 0:
            self.ended.wait(20)
        return super().GetModelInfo(request, context)

    def Tokenize(self, request, context):  # noqa: N802
        self.ended.wait(20)
        return super().Tokenize(request, context)


@pytest.mark.parametrize(
    ("method", "said"),
    [("wait_ready", "no server was ready"), ("wait_for_version", "version 1 did not come")],
)
def test_a_wait_tells_the_reason_that_came_before_its_end(ask, method, said):
    """The last look has what time is left, and says no more than that it was too little."""
    arguments = [1] if method == "wait_for_version" else []
    loading = Fault(message="the model loads", reason="LOADING")
    with (
        Silent(2, unary_faults=[loading] * 2) as server,
        pytest.raises((UnavailableError, DeadlineError)) as raised,
    ):
        ask(server.target, method, *arguments, timeout=1.5, client=NO_GRPC_RETRIES)
    assert raised.value.message == f"{said} within 1.5 s: the model loads"


def test_of_two_reasons_the_later_one_is_told():
    loads, died = UnavailableError("loads"), UnavailableError("died")
    late, later = DeadlineError("late"), DeadlineError("later")
    assert telling(None, loads) is loads
    assert telling(loads, died) is died
    assert telling(loads, late) is loads
    assert telling(late, loads) is loads
    assert telling(None, late) is late
    assert telling(late, later) is late, "the end of the wait cut the later one off"


@pytest.mark.parametrize(
    ("method", "arguments"), [("tokenize", [["a"]]), ("model_info", []), ("list_models", [])]
)
def test_a_short_call_says_who_did_not_answer(ask, method, arguments):
    said = rf"^{NOBODY} did not answer within 1e-05 s$"
    with pytest.raises(DeadlineError, match=said):
        ask(NOBODY, method, *arguments, timeout=1e-5)
    with Silent(0) as server, pytest.raises(DeadlineError) as raised:
        ask(server.target, "tokenize", ["a"], timeout=0.2)
    assert raised.value.message == f"{server.target} did not answer within 0.2 s"


def test_so_does_one_of_an_admin_client(runner):
    slow = threading.Event()

    class Slow(WeightsServer):
        def GetWeights(self, request, context):  # noqa: N802
            slow.wait(20)
            return super().GetWeights(request, context)

    async def main(target):
        async with AsyncAdminClient(target, timeout=0.2) as admin:
            await asyncio.wait_for(admin.get_weights(), 20)

    with Slow({}) as server:
        said = f"^{server.target} did not answer within 0.2 s$"
        with AdminClient(server.target, timeout=0.2) as admin:
            with pytest.raises(DeadlineError, match=said):
                admin.get_weights()
            with pytest.raises(
                DeadlineError, match=f"version 1 did not come within 0.1 s: {server.target} did not"
            ):
                admin.wait_for_version(1, timeout=0.1)
        with pytest.raises(DeadlineError, match=said):
            runner.run(main(server.target))
        slow.set()
