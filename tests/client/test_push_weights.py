"""Pushes of weights through both clients, to a real gRPC server that checks every chunk."""

import gc
import tracemalloc

import numpy as np
import pytest
import torch

from scoring_client import AdminClient, InvalidRequestError, WeightProgress
from scoring_client.proto import admin_pb2
from scoring_client.weights.messages import CHUNK_BYTES
from scoring_client.weights.tensors import HostTensors
from tests.client.pushes import ROOTS, SPECS, assert_holds, raw, state
from tests.client.toy_weights import WeightsServer


def test_every_byte_arrives_once_and_tied_tensors_travel_once(admin):
    tensors = state()
    seen = []
    with WeightsServer(SPECS) as server:
        update = admin(server.target, "push_weights", tensors, version=3, on_progress=seen.append)
        assert_holds(server, tensors)
    total = sum(t.numel() * t.element_size() for n, t in tensors.items() if n in ROOTS)
    assert server.received == total
    assert (update.version, update.phase, update.staging) == (3, "committed", "beside")
    assert max(server.message_sizes) < CHUNK_BYTES + 1024
    # Small tensors share messages: begin, two full parts, the rest, commit.
    assert len(server.requests) == 3 + -(-total // CHUNK_BYTES) - 1
    assert seen[-1] == WeightProgress("committed", total, total)
    assert [p.bytes_done for p in seen] == sorted(p.bytes_done for p in seen)


def test_messages_are_ordinary_ones(admin):
    with WeightsServer(SPECS) as server:
        admin(server.target, "push_weights", state(), version=1)
    assert len(server.raw.kept) == len(server.requests) > 3
    for raw_message in server.raw.kept:
        # What protobuf itself writes of the fields that it knows.
        request = admin_pb2.PushWeightsRequest.FromString(raw_message)
        request.DiscardUnknownFields()
        assert request.SerializeToString(deterministic=True) == raw_message


@pytest.mark.parametrize("form", ["module", "pairs", "iterator", "numpy"])
def test_forms_of_weights(admin, form):
    tensors = state()
    if form == "module":
        weights = Module(tensors)
    elif form == "pairs":
        weights = list(tensors.items())
    elif form == "iterator":
        weights = ((name, tensor.clone()) for name, tensor in tensors.items())
    else:
        bf16 = {n for n, spec in SPECS.items() if spec[0] == "bfloat16"}
        weights = {n: t.float().numpy() if n in bf16 else t.numpy() for n, t in tensors.items()}
    with WeightsServer(SPECS) as server:
        if form == "numpy":
            # Numpy has no bfloat16.
            admin(server.target, "push_weights", weights, version=1, convert_dtypes=True)
        else:
            admin(server.target, "push_weights", weights, version=1)
        assert_holds(server, tensors)


class Module:
    def __init__(self, tensors):
        self._tensors = tensors

    def state_dict(self):
        return self._tensors


def test_a_bfloat16_tensor_is_not_copied():
    tensor = torch.randn(4, 5).bfloat16().requires_grad_()
    brought = HostTensors().bring("w", tensor)
    assert (brought.dtype, brought.shape, brought.volatile) == ("bfloat16", (4, 5), False)
    data = np.frombuffer(brought.data, np.uint8)
    assert data.__array_interface__["data"][0] == tensor.data_ptr()
    assert data.tobytes() == raw(tensor.detach())


def test_views_are_sent_in_the_order_of_their_indices(admin):
    tensors = state()
    wide = torch.randn(3001, 1000).to(torch.bfloat16)
    tensors["model.layers.0.weight"] = wide.T
    with WeightsServer(SPECS) as server:
        admin(server.target, "push_weights", tensors, version=1)
    assert server.tensors["model.layers.0.weight"] == raw(
        wide.T.clone(memory_format=torch.contiguous_format)
    )


def test_an_iterator_may_use_one_buffer_again_and_again(admin):
    specs = {f"w{i}": ("float32", (5,), "") for i in range(20)}

    def generate():
        buffer = torch.empty(5)
        for i in range(20):
            yield f"w{i}", buffer.fill_(i)

    with WeightsServer(specs) as server:
        admin(server.target, "push_weights", generate(), version=1)
    assert server.tensors == {f"w{i}": raw(torch.full((5,), float(i))) for i in range(20)}


def test_either_name_of_tied_tensors_will_do(admin):
    tensors = state()
    for absent in ("lm_head.weight", "model.embed_tokens.weight"):
        weights = {name: tensor for name, tensor in tensors.items() if name != absent}
        with WeightsServer(SPECS) as server:
            admin(server.target, "push_weights", weights, version=1)
            assert_holds(server, tensors)


@pytest.mark.parametrize("form", [dict, lambda tensors: iter(tensors.items())])
def test_tied_tensors_that_differ_are_refused(admin, form):
    with WeightsServer(SPECS) as server:
        with pytest.raises(InvalidRequestError, match="ties"):
            admin(server.target, "push_weights", form(state(tied=False)), version=1)
        assert server.version == 0


def test_equal_copies_of_tied_tensors_travel_once(admin):
    tensors = state()
    tensors["lm_head.weight"] = tensors["lm_head.weight"].clone()
    with WeightsServer(SPECS) as server:
        admin(server.target, "push_weights", tensors, version=1)
        names = [c.name for r in server.requests for c in r.part.chunks]
        assert "lm_head.weight" in names
        assert "model.embed_tokens.weight" not in names


def test_a_part_of_the_tensors(admin):
    with WeightsServer(SPECS) as server:
        only = {"model.norm.weight": state()["model.norm.weight"]}
        admin(server.target, "push_weights", only, version=1, partial=True, base_version=0)
        assert set(server.tensors) == {"model.norm.weight"}
        options = server.requests[0].begin.options
        assert options.partial
        assert options.HasField("base_version")


def test_an_exception_in_the_iterator_cancels_the_update(admin):
    def broken():
        yield from list(state().items())[:3]
        raise ZeroDivisionError("in the trainer")

    with WeightsServer(SPECS) as server:
        with pytest.raises(ZeroDivisionError, match="in the trainer"):
            admin(server.target, "push_weights", broken(), version=1)
        assert server.ended.wait(10)
        assert server.version == 0
        assert all(request.WhichOneof("step") != "commit" for request in server.requests)
        admin(server.target, "push_weights", state(), version=1)
        assert server.version == 1


def test_memory_is_bounded_by_messages_not_by_the_model():
    count, elements = 48, 1 << 20
    specs = {f"w{i:02}": ("float32", (elements,), "") for i in range(count)}

    class Discarding(WeightsServer):
        def _take(self, new, chunk):
            self.received += len(chunk.data)
            self.requests.clear()
            self.raw.kept.clear()

        def _commit(self, new, commit, version, context):
            yield self._status("COMMITTED", version)

    with Discarding(specs, slow=0.002) as server, AdminClient(server.target) as client:
        generate = ((name, np.zeros(elements, np.float32)) for name in specs)
        gc.collect()
        tracemalloc.start()
        client.push_weights(generate, version=1)
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert server.received == count * elements * 4
    # One tensor of 4 MiB, a handful of messages, and as much at the server, of 192 MiB in all.
    assert peak < 60 << 20
