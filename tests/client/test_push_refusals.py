"""Pushes that are refused: by the client before anything is sent, by the server at once."""

import threading
from pathlib import Path

import grpc
import pytest
import torch

from scoring_client import (
    AbortedError,
    AdminClient,
    InvalidRequestError,
    PreconditionFailedError,
    ScoringError,
    ServerError,
    UpdateInProgressError,
)
from scoring_client.weights.given import GivenWeights
from tests.client.pushes import SPECS, state
from tests.client.toy_server import ToyServer
from tests.client.toy_weights import WeightsServer


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"model.layers.0.bais": torch.zeros(7)}, "no tensor model.layers.0.bais; did you mean"),
        ({"model.layers.0.bias": torch.zeros(8)}, r"shape \[8\].*\[7\]"),
        ({"model.norm.weight": torch.zeros(1000)}, "float32.*bfloat16.*convert_dtypes"),
        ({"model.norm.weight": None}, "1 tensors of the model are missing: model.norm.weight"),
        ({"model.scale": "text"}, "model.scale"),
        ({"model.steps": torch.zeros(2)}, "float32.*int64"),
        ({"critic.lm_head.weight": torch.zeros(300, 1000)}, "no tensor critic.lm_head.weight"),
    ],
)
def test_what_is_not_the_models_is_refused_before_anything_is_sent(admin, change, said):
    tensors = {n: t for n, t in (state() | change).items() if t is not None}
    with WeightsServer(SPECS) as server:
        with pytest.raises(InvalidRequestError, match=said):
            admin(server.target, "push_weights", tensors, version=1)
        assert server.version == 0


@pytest.mark.parametrize(
    ("given", "got"),
    [
        ("/models/policy.safetensors", r"got a path: use update_weights\(path=…\)$"),
        (Path("policy"), "got a path"),
        (7, "got int$"),
        (None, "got NoneType$"),
    ],
)
def test_what_is_no_weights_is_named(given, got):
    expected = r"weights: expected a module, a mapping or \(name, tensor\) pairs, "
    with pytest.raises(InvalidRequestError, match=expected + got):
        GivenWeights(given)


def test_a_server_that_refuses_is_heard_at_once(admin):
    def fail(request, number):
        if number == 1:
            return grpc.StatusCode.RESOURCE_EXHAUSTED, "OUT_OF_MEMORY", "no room"
        return None

    specs = {f"w{i:02}": ("float32", (1 << 20,), "") for i in range(40)}
    made = []

    def generate():
        for name in specs:
            made.append(name)
            yield name, torch.zeros(1 << 20)

    with WeightsServer(specs, fail=fail) as server:
        with pytest.raises(ScoringError) as caught:
            admin(server.target, "push_weights", generate(), version=1)
        assert caught.value.code is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert caught.value.reason == "OUT_OF_MEMORY"
        assert caught.value.message == "no room"
        assert len(server.requests) == 2
    # Other ranks may be gathering with this one, so the iterator is run to its end all the same.
    assert made == list(specs)


def test_conditions_of_the_server_are_typed(admin):
    with WeightsServer(SPECS, version=5) as server:
        with pytest.raises(PreconditionFailedError) as caught:
            admin(server.target, "push_weights", state(), version=5)
        assert caught.value.reason == "WEIGHT_VERSION_NOT_NEWER"
        admin(server.target, "push_weights", state(), version=5, allow_older_version=True)
        with pytest.raises(InvalidRequestError, match="running_samples"):
            admin(server.target, "push_weights", state(), version=6, running_samples="stop")


def test_two_trainers_at_once(admin):
    with WeightsServer(SPECS, commit_slow=1.5) as server:
        first = threading.Thread(
            target=lambda: AdminClient(server.target).push_weights(state(), version=1)
        )
        first.start()
        while not server.requests:
            pass
        with pytest.raises(UpdateInProgressError) as caught:
            admin(server.target, "push_weights", state(), version=2)
        assert isinstance(caught.value, AbortedError)
        first.join()
        assert server.version == 1


def test_a_server_without_the_service_says_so(admin):
    with ToyServer() as server, pytest.raises(ServerError, match="--allow-admin"):
        admin(server.target, "push_weights", state(), version=1)


def test_missing_tensors_are_counted_as_they_travel(admin):
    """A tied head is no tensor of its own: a full push has as many."""
    with WeightsServer(SPECS) as server:
        full = sum(not tied for _, _, tied in SPECS.values())
        with pytest.raises(InvalidRequestError, match=rf"^{full} tensors of the model are missing"):
            admin(server.target, "push_weights", {}, version=1)
        admin(server.target, "push_weights", state(), version=1)
        assert len(server.tensors) == full < len(SPECS)
