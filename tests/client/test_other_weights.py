"""Several servers, of which some have other weights than those that a call insists on."""

from contextlib import ExitStack

import pytest

from scoring_client import Expect, PreconditionFailedError
from scoring_client.connection.retry import Attempts, RetryPolicy
from scoring_client.connection.servers import ServerCount, servers_behind
from tests.client.toy_server import ToyServer
from tests.client.truth import assert_scores

GROUPS = [([g], [[g + 1, g + 2]]) for g in range(12)]
ONE = GROUPS[:1]
NEW = {"expect": Expect(weight_version=3)}


def behind_one_name(*servers: ToyServer) -> str:
    return "ipv4:" + ",".join(server.target for server in servers)


def test_another_server_is_asked(ask):
    """Also for each of many parts at once, of which half go to the wrong one first."""
    with ToyServer(version=2) as old, ToyServer(version=3) as new:
        target = behind_one_name(old, new)
        for _ in range(3):
            results = ask(target, "score", GROUPS, client={"tokens_per_part": 3}, **NEW)
            for group, (prompt, (completion,)) in zip(results, GROUPS, strict=True):
                assert_scores(group[0], prompt, completion, version=3)
            assert {p.weight_version for p in results.provenances} == {3}
        assert old.requests, "it was never asked: this shows nothing"


def test_all_of_them_refuse(ask):
    """It ends once each of the servers that the target names has said so."""
    with ExitStack() as stack:
        servers = [stack.enter_context(ToyServer(version=2)) for _ in range(3)]
        with pytest.raises(PreconditionFailedError) as raised:
            ask(behind_one_name(*servers), "score", ONE, **NEW)
        asked = [len(server.requests) for server in servers]
    assert raised.value.reason == "WEIGHT_VERSION_MISMATCH"
    assert min(asked) >= 1
    assert sum(asked) <= 16


@pytest.mark.parametrize("says_who", [True, False])
@pytest.mark.parametrize("attempts", [5, 1])
def test_a_server_alone_is_believed(ask, says_who, attempts):
    """The first time, or the second one: what the resolver says comes a little later."""
    with ToyServer(version=2, says_who=says_who) as server:
        with pytest.raises(PreconditionFailedError, match="another version"):
            ask(server.target, "score", ONE, client={"max_attempts": attempts}, **NEW)
        assert len(server.requests) <= (1 if attempts == 1 else 2)


def test_no_time_is_left_to_ask_another(ask):
    with ToyServer(version=2) as server:
        with pytest.raises(PreconditionFailedError):
            ask(server.target, "score", ONE, timeout=0.02, **NEW)
        assert len(server.requests) == 1


def refusal(server: str) -> PreconditionFailedError:
    return PreconditionFailedError(
        "another version", reason="WEIGHTS_DIGEST_MISMATCH", metadata={"server": server}
    )


@pytest.mark.parametrize(
    ("known", "says", "asked"),
    [
        (None, ["a"] * 99, 4),  # most likely alone
        (None, ["a", "b"] * 99, 16),
        (2, ["a"] * 99, 16),  # the other one may have what is wanted
        (2, ["a", "b"], 2),
        (3, ["a", "b", "a", "b", "c"], 5),
        (3, [""] * 99, 16),  # of an earlier release
        (1, ["a"], 1),
    ],
)
def test_how_many_are_asked(known, says, asked):
    class Known(ServerCount):
        def look(self):
            return known

    attempts = Attempts(RetryPolicy(), None, servers=Known(None))
    for server in says[: asked - 1]:
        assert 0.02 < attempts.wait_after(refusal(server), progressed=False) <= 0.4
    with pytest.raises(PreconditionFailedError):
        attempts.wait_after(refusal(says[asked - 1]), progressed=False)


def test_what_a_target_names():
    assert servers_behind("ipv4:10.0.0.1:5,10.0.0.2:5") == 2
    assert servers_behind("127.0.0.1:50051") == 1
    assert servers_behind("dns:///127.0.0.1:50051") == 1
    assert servers_behind("unix:/tmp/socket") == 1
    assert servers_behind("xds:///scoring") is None
    assert servers_behind("dns://127.0.0.1:53/scoring.test:50051") is None
    assert servers_behind("name.that.does.not.exist.invalid:1") is None
