"""Pushes of weights through both clients, to a real gRPC server that checks every chunk."""

import asyncio
import gc
import hashlib
import math
import threading
import tracemalloc
from pathlib import Path

import grpc
import numpy as np
import pytest
import safetensors.torch
import torch

from scoring_client import (
    AbortedError,
    AdminClient,
    AsyncAdminClient,
    CancelledCallError,
    InvalidRequestError,
    NotFoundError,
    PreconditionFailedError,
    ReplicaError,
    ScoringError,
    ServerError,
    UpdateInProgressError,
    WeightProgress,
    async_push_to_all,
    gather_weights,
    push_to_all,
    replica_targets,
)
from scoring_client.proto import admin_pb2, weights_pb2
from scoring_client.weights.given import GivenWeights
from scoring_client.weights.messages import CHUNK_BYTES
from scoring_client.weights.replicas import check_one_server, targets_of
from scoring_client.weights.tensors import HostTensors
from tests.client.toy_server import ToyServer
from tests.client.toy_weights import WeightsServer

SPECS = {
    "lm_head.weight": ("bfloat16", (300, 1000), "model.embed_tokens.weight"),
    "model.embed_tokens.weight": ("bfloat16", (300, 1000), ""),
    "model.layers.0.weight": ("bfloat16", (1000, 3001), ""),
    "model.layers.0.bias": ("float32", (7,), ""),
    "model.norm.weight": ("bfloat16", (1000,), ""),
    "model.scale": ("float32", (), ""),
    "model.steps": ("int64", (2,), ""),
    "model.nothing": ("float32", (0, 4), ""),
}
ROOTS = {name for name, spec in SPECS.items() if not spec[2]}


def state(seed=0, tied=True):
    """A trainer's state_dict for SPECS."""
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for name, (dtype, shape, _) in SPECS.items():
        values = torch.randn(shape, generator=generator) * 50
        tensors[name] = values.to(getattr(torch, dtype))
    if tied:
        tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"]
    return tensors


def raw(tensor):
    """Bytes as another library writes them: what follows the header of a safetensors file."""
    file = safetensors.torch.save({"t": tensor.contiguous()})
    return file[8 + int.from_bytes(file[:8], "little") :]


def assert_holds(server, tensors):
    for name in ROOTS:
        assert server.tensors[name] == raw(tensors[name]), name


class Both:
    """Calls through one client or the other."""

    def __init__(self, kind, runner):
        self.kind, self._runner = kind, runner

    def __call__(self, target, method, *args, **kw):
        if self.kind == "sync":
            with AdminClient(target) as client:
                return getattr(client, method)(*args, **kw)

        async def main():
            async with AsyncAdminClient(target) as client:
                return await getattr(client, method)(*args, **kw)

        return self._runner.run(main())

    def to_all(self, targets, *args, **kw):
        if self.kind == "sync":
            clients = [AdminClient(target) for target in targets]
            try:
                return push_to_all(clients, *args, **kw)
            finally:
                for client in clients:
                    client.close()

        async def main():
            clients = [AsyncAdminClient(target) for target in targets]
            try:
                return await async_push_to_all(clients, *args, **kw)
            finally:
                await asyncio.gather(*(client.close() for client in clients))

        return self._runner.run(main())


@pytest.fixture(params=["sync", "async"])
def admin(request, runner):
    return Both(request.param, runner)


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


@pytest.mark.parametrize("names", ["wrapped", "base model", "renamed"])
def test_names(admin, names):
    tensors = state()
    if names == "wrapped":
        weights = {f"module._orig_mod.{name}": tensor for name, tensor in tensors.items()}
        options = {}
    elif names == "base model":
        weights = {name.removeprefix("model."): tensor for name, tensor in tensors.items()}
        options = {}
    else:
        weights = {f"policy/{name}": tensor for name, tensor in tensors.items()}
        weights["critic/v_head.weight"] = torch.zeros(3)
        options = {"names": lambda n: None if "critic" in n else n.removeprefix("policy/")}
    with WeightsServer(SPECS) as server:
        admin(server.target, "push_weights", weights, version=1, **options)
        assert_holds(server, tensors)


EXPERTS = "model.layers.0.mlp.experts"
MOE = {
    f"{EXPERTS}.down_proj": ("bfloat16", (3, 6, 4), ""),
    f"{EXPERTS}.gate_up_proj": ("bfloat16", (3, 8, 6), ""),
    "model.layers.0.mlp.gate.weight": ("float32", (3, 6), ""),
    "model.embeddings.LayerNorm.weight": ("float32", (6,), ""),
}
OLD = "model.layers.0.block_sparse_moe"
IN_CHECKPOINTS = {
    f"{EXPERTS}.down_proj": [f"{OLD}.experts.*.w2.weight"],
    f"{EXPERTS}.gate_up_proj": [f"{OLD}.experts.*.w1.weight", f"{OLD}.experts.*.w3.weight"],
    "model.layers.0.mlp.gate.weight": [f"{OLD}.gate.weight"],
}


def experts_one_by_one(seed=0):
    """(a checkpoint's tensors, the model's) of MOE."""
    generator = torch.Generator().manual_seed(seed)
    w1, w2, w3 = (
        torch.randn(3, *shape, generator=generator).bfloat16() for shape in ((4, 6), (6, 4), (4, 6))
    )
    gate, norm = torch.randn(3, 6, generator=generator), torch.ones(6)
    found = {f"{OLD}.gate.weight": gate, "embeddings.LayerNorm.gamma": norm}
    for expert in reversed(range(3)):
        for name, tensor in (("w1", w1), ("w2", w2), ("w3", w3)):
            found[f"{OLD}.experts.{expert}.{name}.weight"] = tensor[expert]
    return found, {
        f"{EXPERTS}.down_proj": w2,
        f"{EXPERTS}.gate_up_proj": torch.cat([w1, w3], dim=1),
        "model.layers.0.mlp.gate.weight": gate,
        "model.embeddings.LayerNorm.weight": norm,
    }


@pytest.mark.parametrize("form", ["mapping", "iterator", "numpy"])
def test_experts_one_by_one_under_a_checkpoint_s_names(admin, form):
    given, expected = experts_one_by_one()
    options = {}
    if form == "iterator":
        given = ((name, tensor.clone()) for name, tensor in list(given.items()))
    elif form == "numpy":
        given = {name: tensor.float().numpy() for name, tensor in given.items()}
        options = {"convert_dtypes": True}
    with WeightsServer(MOE, checkpoint_names=IN_CHECKPOINTS) as server:
        admin(server.target, "push_weights", given, version=1, **options)
        assert server.tensors == {name: raw(tensor) for name, tensor in expected.items()}


@pytest.mark.parametrize("form", [dict, lambda tensors: iter(tensors.items())])
def test_parts_of_tensors_that_do_not_fit(admin, form):
    name = f"{OLD}.experts.1.w1.weight"
    tensor = experts_one_by_one()[0][name]
    for change, message in (
        ({name: None}, "1 of the 6 parts of .*gate_up_proj are missing, number 2"),
        ({name: tensor.T}, r"has shape \[6, 4\], but a part of .* has \[4, 6\]"),
        ({name: tensor.float()}, "is float32 of Tensor, but other parts"),
        ({f"{EXPERTS}.gate_up_proj": torch.zeros(3, 8, 6).bfloat16()}, "twice|both mean"),
    ):
        tensors = {**experts_one_by_one()[0], **change}
        weights = form({n: t for n, t in tensors.items() if t is not None})
        with WeightsServer(MOE, checkpoint_names=IN_CHECKPOINTS) as server:
            with pytest.raises(InvalidRequestError, match=message):
                admin(server.target, "push_weights", weights, version=1)
            assert server.version == 0


def test_a_part_that_comes_again_is_named(admin):
    """Also when its tensor has been whole, and sent."""
    given = list(experts_one_by_one()[0].items())
    name, tensor = f"{OLD}.experts.1.w1.weight", torch.zeros(4, 6).bfloat16()
    for place in (given.index(next(p for p in given if p[0] == name)) + 1, len(given)):
        again = [*given[:place], (name, tensor), *given[place:]]
        with WeightsServer(MOE, checkpoint_names=IN_CHECKPOINTS) as server:
            with pytest.raises(InvalidRequestError, match=f"^{name} is there twice$"):
                admin(server.target, "push_weights", iter(again), version=1)
            assert server.version == 0


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


def test_missing_tensors_are_counted_as_they_travel(admin):
    """A tied head is no tensor of its own: a full push has as many."""
    with WeightsServer(SPECS) as server:
        full = sum(not tied for _, _, tied in SPECS.values())
        with pytest.raises(InvalidRequestError, match=rf"^{full} tensors of the model are missing"):
            admin(server.target, "push_weights", {}, version=1)
        admin(server.target, "push_weights", state(), version=1)
        assert len(server.tensors) == full < len(SPECS)


def test_a_part_of_the_tensors(admin):
    with WeightsServer(SPECS) as server:
        only = {"model.norm.weight": state()["model.norm.weight"]}
        admin(server.target, "push_weights", only, version=1, partial=True, base_version=0)
        assert set(server.tensors) == {"model.norm.weight"}
        options = server.requests[0].begin.options
        assert options.partial
        assert options.HasField("base_version")


def test_types_are_converted_here_as_the_server_would(admin):
    tensors = state()
    wide = {name: tensor.double() for name, tensor in tensors.items() if tensor.is_floating_point()}
    wide["model.norm.weight"] = exact = torch.randn(1000, dtype=torch.float32)
    wide["lm_head.weight"] = wide["model.embed_tokens.weight"]
    with WeightsServer(SPECS) as server:
        admin(server.target, "push_weights", tensors | wide, version=1, convert_dtypes=True)
        assert_holds(server, tensors | {"model.norm.weight": exact.to(torch.bfloat16)})


def wide_torch():
    return {"w": torch.arange(4.0), "n": torch.arange(3)}


def wide_numpy():
    return {name: tensor.numpy() for name, tensor in wide_torch().items()}


@pytest.mark.parametrize(
    ("dtype", "given", "asked"),
    [
        ("bfloat16", wide_torch, False),
        ("bfloat16", wide_numpy, False),
        ("bfloat16", lambda: iter(wide_torch().items()), False),
        ("float16", wide_numpy, False),
        ("float8_e4m3fn", wide_torch, False),
        # numpy has no such type, and of an iterator nobody knows what will come.
        ("float8_e4m3fn", wide_numpy, True),
        ("float8_e4m3fn", lambda: iter(wide_torch().items()), True),
    ],
)
def test_the_server_is_asked_to_convert_only_what_is_not_converted_here(admin, dtype, given, asked):
    """It could not hash while bytes arrive, and would want room for elements of eight bytes."""
    specs = {"w": (dtype, (4,), ""), "n": ("int64", (3,), "")}
    with WeightsServer(specs) as server:
        admin(server.target, "push_weights", given(), version=1, convert_dtypes=True)
        assert server.requests[0].begin.options.convert_dtypes is asked
        kinds = {chunk.name: chunk.dtype for r in server.requests for chunk in r.part.chunks}
    as_it_was = asked and given is wide_numpy
    sent = weights_pb2.WeightDataType.Name(kinds["w"])
    assert sent == f"WEIGHT_DATA_TYPE_{'FLOAT32' if as_it_was else dtype.upper()}"


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_numpy_is_rounded_to_bfloat16_as_torch_does_it(admin, dtype):
    """All ties, ends and odd values; and progress counts what is sent."""
    bits = torch.arange(1 << 16, dtype=torch.int32) << 16
    edges = (bits[:, None] + torch.tensor([0, 1, 0x7FFF, 0x8000, 0x8001])).view(torch.float32)
    edges = edges[~edges.isnan()]
    with np.errstate(over="ignore"):
        given = edges.numpy().astype(dtype)
    expected = torch.from_numpy(given).to(torch.bfloat16)
    seen = []
    specs = {"w": ("bfloat16", given.shape, "")}
    with WeightsServer(specs) as server:
        admin(
            server.target,
            "push_weights",
            {"w": given},
            version=1,
            convert_dtypes=True,
            digest=True,
            on_progress=seen.append,
        )
        assert server.tensors["w"] == raw(expected)
        given = np.array([math.nan, -math.nan], dtype)
        specs["w"] = ("bfloat16", (2,), "")
        admin(server.target, "push_weights", {"w": given}, version=2, convert_dtypes=True)
        sent = np.frombuffer(server.tensors["w"], np.uint16).astype(np.uint32) << 16
        assert np.isnan(sent.view(np.float32)).all()
    total = 2 * expected.numel()
    assert seen[-1] == WeightProgress("committed", total, total)


@pytest.mark.parametrize("form", [dict, lambda tensors: iter(tensors.items())])
@pytest.mark.parametrize("absent", [None, "lm_head.weight", "model.embed_tokens.weight"])
def test_the_digest_covers_tied_tensors_once_whatever_name_they_come_under(admin, absent, form):
    tensors = state()
    weights = {name: tensor for name, tensor in tensors.items() if name != absent}
    with WeightsServer(SPECS) as server:
        in_order = dict(sorted(weights.items()))
        admin(server.target, "push_weights", form(in_order), version=1, digest=True)
    expected = hashlib.sha256()
    for name in sorted(SPECS):
        dtype, shape, tied = SPECS[name]
        if not tied:
            line = f"{name} {dtype} {','.join(map(str, shape))}\n"
            expected.update(line.encode() + raw(tensors[name]))
    assert server.requests[-1].commit.weights_digest == expected.hexdigest()
    assert server.version == 1


def test_a_digest_needs_sorted_names_of_all_tensors(admin):
    with WeightsServer(SPECS) as server:
        backwards = ((name, tensor) for name, tensor in sorted(state().items(), reverse=True))
        with pytest.raises(InvalidRequestError, match="order of the model's own names"):
            admin(server.target, "push_weights", backwards, version=1, digest=True)
        with pytest.raises(InvalidRequestError, match="digest or partial"):
            admin(server.target, "push_weights", {}, version=1, digest=True, partial=True)


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


@pytest.mark.parametrize("other_update", [False, True])
def test_a_lost_status_is_asked_for_by_the_update_s_name(runner, other_update):
    def fail(request, number):
        return (grpc.StatusCode.RESOURCE_EXHAUSTED, "OUT_OF_MEMORY", "no room") if number else None

    async def push(target):
        async with AsyncAdminClient(target) as client:
            await client.push_weights(state(), version=1)

    with (
        WeightsServer(SPECS, fail=fail, loses_status=True, other_update=other_update) as server,
        pytest.raises(ScoringError) as caught,
    ):
        runner.run(push(server.target))
    # What became of somebody else's update is no answer.
    lost = (grpc.StatusCode.INTERNAL, "")
    told = (grpc.StatusCode.RESOURCE_EXHAUSTED, "OUT_OF_MEMORY")
    assert (caught.value.code, caught.value.reason) == (lost if other_update else told)


def test_closing_an_async_client_ends_its_push_and_cancels_nobody(runner):
    async def push(target):
        client, closing = AsyncAdminClient(target), []

        def close(progress):
            closing.append(asyncio.ensure_future(client.close()))

        try:
            await client.push_weights(state(), version=1, on_progress=close)
        finally:
            await asyncio.gather(*closing)

    with (
        WeightsServer(SPECS, commit_slow=0.2) as server,
        pytest.raises(CancelledCallError, match="client was closed while it ran"),
    ):
        runner.run(push(server.target))
    assert server.version == 0


def test_conditions_of_the_server_are_typed(admin):
    with WeightsServer(SPECS, version=5) as server:
        with pytest.raises(PreconditionFailedError) as caught:
            admin(server.target, "push_weights", state(), version=5)
        assert caught.value.reason == "WEIGHT_VERSION_NOT_NEWER"
        admin(server.target, "push_weights", state(), version=5, allow_older_version=True)
        with pytest.raises(InvalidRequestError, match="running_samples"):
            admin(server.target, "push_weights", state(), version=6, running_samples="stop")


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


class Sharded:
    """What a DTensor is to the client; the real one needs a process group."""

    def __init__(self, tensor, log):
        self._tensor, self._log = tensor, log

    def full_tensor(self):
        self._log.append(self._tensor.data_ptr())
        return self._tensor.clone()


def test_sharded_tensors_are_gathered_in_the_order_given_on_every_rank(admin):
    tensors = state()
    ours, theirs = [], []
    with WeightsServer(SPECS) as server:
        admin(
            server.target,
            "push_weights",
            {name: Sharded(tensor, ours) for name, tensor in tensors.items()},
            version=1,
        )
        assert_holds(server, tensors)
        gather_weights({name: Sharded(tensor, theirs) for name, tensor in tensors.items()})
        assert ours == theirs
        assert len(ours) == len(SPECS)
        # And when the server refuses, so that no other rank waits for ever.
        ours.clear()
        with pytest.raises(PreconditionFailedError):
            admin(
                server.target,
                "push_weights",
                {name: Sharded(tensor, ours) for name, tensor in tensors.items()},
                version=1,
            )
        assert ours == theirs


def test_real_dtensors(admin):
    import torch.distributed as dist
    from torch.distributed.tensor import DTensor, Replicate, Shard, init_device_mesh

    tensors = state()
    dist.init_process_group("gloo", rank=0, world_size=1, store=dist.HashStore())
    try:
        mesh = init_device_mesh("cpu", (1,))
        sharded = {
            name: DTensor.from_local(t, mesh, [Shard(0) if t.dim() else Replicate()])
            for name, t in tensors.items()
        }
        with WeightsServer(SPECS) as server:
            admin(server.target, "push_weights", sharded, version=1)
            assert_holds(server, tensors)
    finally:
        dist.destroy_process_group()


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


def test_update_from_files(admin):
    seen = []
    with WeightsServer(SPECS) as server:
        update = admin(
            server.target,
            "update_weights",
            version=2,
            path="/models/new",
            running_samples="continue",
            staging="in_place",
            on_progress=seen.append,
        )
        assert update.phase == "committed"
        assert [progress.phase for progress in seen] == ["receiving", "staging", "committed"]
        request = server.requests[0]
        assert request.path == "/models/new"
        assert request.options.running_samples == 2
        assert request.options.staging == 3
        admin(server.target, "update_weights", version=3, repository="a/b", revision="main")
        assert server.requests[1].hub.revision == "main"
        with pytest.raises(NotFoundError):
            admin(server.target, "update_weights", version=4, path="/nowhere")
        for wrong in ({}, {"path": "/a", "repository": "b"}, {"path": "/a", "revision": "c"}):
            with pytest.raises(InvalidRequestError):
                admin(server.target, "update_weights", version=4, **wrong)


def test_the_other_calls(admin):
    with WeightsServer(SPECS, version=7) as server:
        info = admin(server.target, "get_weights", list_tensors=True)
        assert (info.version, info.update) == (7, None)
        assert [tensor.name for tensor in info.tensors] == sorted(SPECS)
        by_name = {tensor.name: tensor for tensor in info.tensors}
        assert by_name["lm_head.weight"].tied_to == "model.embed_tokens.weight"
        assert by_name["model.layers.0.weight"].dtype == "bfloat16"
        assert admin(server.target, "flush_cache") == 12
        with pytest.raises(NotFoundError):
            admin(server.target, "abort_update", "u7")
        admin(server.target, "resume")
        assert admin(server.target, "wait_for_version", 7).version == 7
        with pytest.raises(TimeoutError):
            admin(server.target, "wait_for_version", 8, timeout=0.05)
    # A server that is being started again will have its version, once somebody pushes it.
    with pytest.raises(TimeoutError, match=r"version 8 did not come within 0\.2 s: "):
        admin(server.target, "wait_for_version", 8, timeout=0.2)


def test_drain_is_sent_by_the_call_and_waits(admin):
    told = []
    with WeightsServer(SPECS) as server:
        assert admin(server.target, "drain", on_progress=told.append) is None
        assert told == [2, 0]
        admin(server.target, "drain")
        assert server.drains == 2


def test_a_server_without_the_service_says_so(admin):
    with ToyServer() as server, pytest.raises(ServerError, match="--allow-admin"):
        admin(server.target, "push_weights", state(), version=1)


class LoraLinear(torch.nn.Module):
    """PEFT's LoRA layer as far as names and `merged` go."""

    def __init__(self):
        super().__init__()
        self.base_layer = torch.nn.Linear(3, 2)
        self.lora_A = torch.nn.ModuleDict({"default": torch.nn.Linear(3, 1, bias=False)})
        self.lora_B = torch.nn.ModuleDict({"default": torch.nn.Linear(1, 2, bias=False)})
        self.merged = False


def test_lora_is_pushed_when_it_is_merged(admin):
    policy = torch.nn.Module()
    policy.base_model = torch.nn.Module()
    policy.base_model.model = torch.nn.ModuleDict(
        {"proj": LoraLinear(), "norm": torch.nn.LayerNorm(2)}
    )
    layer = policy.base_model.model["proj"]
    specs = {
        "proj.weight": ("float32", (2, 3), ""),
        "proj.bias": ("float32", (2,), ""),
        "norm.weight": ("float32", (2,), ""),
        "norm.bias": ("float32", (2,), ""),
    }
    with WeightsServer(specs) as server:
        for weights in (policy, policy.state_dict()):
            with pytest.raises(InvalidRequestError, match="merge_adapter"):
                admin(server.target, "push_weights", weights, version=1)
        layer.merged = True
        admin(server.target, "push_weights", policy, version=1)
        assert server.tensors["proj.weight"] == raw(layer.base_layer.weight.detach())
        state = policy.state_dict()
        admin(server.target, "push_weights", state, version=2, merged_lora=True)
        assert set(server.tensors) == set(specs)
