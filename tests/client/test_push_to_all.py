"""Pushes to several servers, which change together or are told apart."""

import asyncio

import grpc
import pytest

from scoring_client import (
    AdminClient,
    AsyncAdminClient,
    CancelledCallError,
    InvalidRequestError,
    ReplicaError,
    push_to_all,
    replica_targets,
)
from scoring_client.weights.replicas import check_one_server, targets_of
from tests.client.pushes import SPECS, assert_holds, state
from tests.client.toy_weights import WeightsServer


def test_several_servers_read_each_tensor_once(admin):
    tensors = state()
    read = []

    def generate():
        for name, tensor in tensors.items():
            read.append(name)
            yield name, tensor

    with WeightsServer(SPECS) as one, WeightsServer(SPECS) as two, WeightsServer(SPECS) as three:
        targets = [server.target for server in (one, two, three)]
        updates = admin.to_all(targets, generate(), version=4)
        assert [update.version for update in updates] == [4, 4, 4]
        for server in (one, two, three):
            assert_holds(server, tensors)
    assert read == list(tensors)


def test_a_server_that_fails_before_the_commit_keeps_all_from_changing(admin):
    def fail(request, number):
        if number == 2:
            return grpc.StatusCode.UNAVAILABLE, "WORKER_DIED", "lost"
        return None

    with WeightsServer(SPECS) as one, WeightsServer(SPECS, fail=fail) as two:
        with pytest.raises(ReplicaError, match="no server changed") as caught:
            admin.to_all([one.target, two.target], state(), version=4)
        assert set(caught.value.errors) == {two.target}
        assert caught.value.updates == {}
        assert one.ended.wait(10)
        assert (one.version, two.version) == (0, 0)


def test_streams_that_were_opened_end_when_another_cannot_be():
    opened = []

    class Opens(AdminClient):
        def open_push(self, timeout):
            opened.append(super().open_push(timeout))
            return opened[-1]

    class Fails(AdminClient):
        def open_push(self, timeout):
            raise RuntimeError("can't start new thread")

    with (
        WeightsServer(SPECS) as one,
        WeightsServer(SPECS) as two,
        Opens(one.target) as first,
        Fails(two.target) as second,
    ):
        with pytest.raises(RuntimeError, match="new thread"):
            push_to_all([first, second], state(), version=4)
        assert opened[0].wait(None, 10)
        assert isinstance(opened[0].error, CancelledCallError)


def test_a_server_that_fails_at_the_commit_is_named(admin):
    def fail(request, number):
        if request.WhichOneof("step") == "commit":
            return grpc.StatusCode.UNAVAILABLE, "WORKER_DIED", "lost"
        return None

    with WeightsServer(SPECS) as one, WeightsServer(SPECS, fail=fail) as two:
        with pytest.raises(ReplicaError, match="the others committed") as caught:
            admin.to_all([one.target, two.target], state(), version=4)
        assert set(caught.value.errors) == {two.target}
        assert caught.value.errors[two.target].reason == "WORKER_DIED"
        assert set(caught.value.updates) == {one.target}
        assert one.version == 4


def test_different_models_are_told_apart(admin):
    other = {**SPECS, "model.norm.weight": ("float32", (1000,), "")}
    with (
        WeightsServer(SPECS) as one,
        WeightsServer(other) as two,
        pytest.raises(InvalidRequestError, match="different models"),
    ):
        admin.to_all([one.target, two.target], state(), version=4)


CALLS = {
    "get_weights": lambda client: client.get_weights(),
    "flush_cache": lambda client: client.flush_cache(),
    "resume": lambda client: client.resume(),
    "abort_update": lambda client: client.abort_update(),
    "update_weights": lambda client: client.update_weights(version=1, path="/weights"),
    "drain": lambda client: client.drain(),
}


@pytest.mark.parametrize("call", CALLS)
def test_no_call_goes_to_one_of_several_servers(call):
    """An update or a drain of one replica of several is not what anybody means."""
    target = "ipv4:127.0.0.1:1,127.0.0.1:2"
    with AdminClient(target) as client, pytest.raises(InvalidRequestError, match="2 servers"):
        CALLS[call](client)

    async def asynchronous():
        async with AsyncAdminClient(target) as client:
            return await CALLS[call](client)

    with pytest.raises(InvalidRequestError, match="2 servers"):
        asyncio.run(asynchronous())


def test_several_servers_behind_one_name_are_refused():
    with pytest.raises(InvalidRequestError, match="2 servers"):
        check_one_server("ipv4:10.0.0.1:5,10.0.0.2:5")
    check_one_server("localhost:50051")
    check_one_server("unix:/tmp/socket")
    check_one_server("name.that.does.not.exist.invalid:1")
    assert replica_targets("127.0.0.1:5") == ["127.0.0.1:5"]
    assert targets_of([(2, "10.0.0.1"), (2, "10.0.0.2"), (10, "fd00::1")], "5") == [
        "10.0.0.1:5",
        "10.0.0.2:5",
    ]
    assert targets_of([(10, "fd00::1"), (10, "fd00::1")], "5") == ["[fd00::1]:5"]
    with pytest.raises(InvalidRequestError, match="no port"):
        replica_targets("scoring")
