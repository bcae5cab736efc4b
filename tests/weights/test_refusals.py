"""Updates that cannot be: each a clear error, and the weights that answered go on."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import grpc
import pytest
import pytest_asyncio
import torch

from scoring_client.proto import admin_pb2, weights_pb2
from scoring_service.rpc.admin.config import AdminConfig
from tests.rpc.calls import failure, reason, violations
from tests.weights.conftest import ENGINE, WeightServer, the_rest, weight_server
from tests.weights.trainer import State, Trainer, begin, chunk, commit, messages, part, pieces

INVALID = grpc.StatusCode.INVALID_ARGUMENT
FAILED = grpc.StatusCode.FAILED_PRECONDITION
NORM = "model.norm.weight"
EMBEDDING = "model.embed_tokens.weight"


@pytest.fixture(scope="module")
def state() -> State:
    """Weights that no server has."""
    trainer = Trainer()
    trainer.step()
    return trainer.states[1]


async def refused(
    served: WeightServer, requests: Iterator[Any] | list[Any]
) -> tuple[grpc.StatusCode, Any]:
    """How an update failed; afterwards everything is as it was."""
    before = await served.weights()
    code, status = await failure(served.admin.PushWeights(iter(requests)))
    after = await served.weights()
    assert (after.version, after.weights_digest) == (before.version, before.weights_digest)
    assert not after.HasField("update")
    assert after.updates_committed == before.updates_committed
    assert not after.held
    return code, status


Bad = Callable[[State], list[Any]]

BAD_CHUNKS: dict[str, tuple[Bad, str, str]] = {
    "a name that is not there": (
        lambda s: [part(chunk("model.norm.wieght", s[NORM]))],
        "part.chunks[0].name",
        "did you mean 'model.norm.weight'?",
    ),
    "another shape": (
        lambda s: [part(chunk(NORM, s[NORM][:-1]))],
        "part.chunks[0].shape",
        "not [",
    ),
    "another type": (
        lambda s: [part(chunk(NORM, s[NORM].bfloat16()))],
        "part.chunks[0].dtype",
        "not float32",
    ),
    "no type": (lambda s: [part(chunk(NORM, s[NORM], dtype=0))], "part.chunks[0].dtype", "known"),
    "a gap": (lambda s: [part(chunk(NORM, s[NORM], offset=4))], "part.chunks[0].offset", "0 bytes"),
    "the same bytes twice": (
        lambda s: [part(chunk(NORM, s[NORM])), part(chunk(NORM, s[NORM]))],
        "part.chunks[0].offset",
        "came so far",
    ),
    "too many bytes": (
        lambda s: [part(chunk(NORM, s[NORM], data=bytes(s[NORM].numel() * 4 + 1)))],
        "part.chunks[0].data",
        "has",
    ),
    "no bytes": (lambda s: [part(chunk(NORM, s[NORM], data=b""))], "part.chunks[0].data", "empty"),
    "both names of tied tensors": (
        lambda s: [part(chunk(EMBEDDING, s[EMBEDDING][:]), chunk("lm_head.weight", s[EMBEDDING]))],
        "part.chunks[1].name",
        "tied",
    ),
    "another type in the middle": (
        lambda s: [
            part(next(pieces(chunk(NORM, s[NORM]), 8))),
            part(chunk(NORM, s[NORM].half(), offset=8)),
        ],
        "part.chunks[0].dtype",
        "after float32",
    ),
    "no chunk": (lambda s: [part()], "part.chunks", "empty"),
    "begin twice": (lambda s: [begin(2)], "step", "comes here"),
    "nothing": (lambda s: [admin_pb2.PushWeightsRequest()], "step", "comes here"),
    "a digest that is none": (lambda s: [commit("abc")], "commit.weights_digest", "hexadecimal"),
}


@pytest.mark.parametrize("name", BAD_CHUNKS)
async def test_bad_messages(served: WeightServer, state: State, name: str) -> None:
    make, field, hint = BAD_CHUNKS[name]
    code, status = await refused(served, [begin(1), *make(state)])
    assert (code, reason(status)) == (INVALID, "INVALID_FIELD")
    ((found, description),) = violations(status)
    assert found == field
    assert hint in description


BAD_BEGINS: dict[str, tuple[Any, str]] = {
    "a part first": (part(), "step"),
    "no version": (
        admin_pb2.PushWeightsRequest(begin=admin_pb2.PushWeightsBegin()),
        "begin.options.version",
    ),
    "an unknown policy": (begin(1, running_samples=9), "begin.options.running_samples"),
    "an unknown staging": (begin(1, staging=9), "begin.options.staging"),
    "a digest that is none": (begin(1, weights_digest="x"), "begin.options.weights_digest"),
}


@pytest.mark.parametrize("name", BAD_BEGINS)
async def test_bad_begins(served: WeightServer, name: str) -> None:
    message, field = BAD_BEGINS[name]
    code, status = await refused(served, [message])
    assert (code, reason(status)) == (INVALID, "INVALID_FIELD")
    assert violations(status)[0][0] == field


async def test_what_was_expected(served: WeightServer, state: State) -> None:
    """Versions and digests that do not hold."""
    version = (await served.weights()).version
    for requests, wanted in (
        ([begin(version)], "WEIGHT_VERSION_NOT_NEWER"),
        ([begin(version + 1, base_version=version + 5)], "WEIGHT_VERSION_MISMATCH"),
        (messages(state, version + 1, weights_digest="0" * 64), "WEIGHTS_DIGEST_MISMATCH"),
        ([*list(messages(state, version + 1))[:-1], commit("1" * 64)], "WEIGHTS_DIGEST_MISMATCH"),
    ):
        code, status = await refused(served, requests)
        assert (code, reason(status)) == (FAILED, wanted)


async def test_incomplete(served: WeightServer, state: State) -> None:
    """Tensors that did not come, or not to their end."""
    whole = list(messages(state, 1))
    code, status = await refused(served, [m for m in whole if NORM not in str(m)[:200]])
    assert (code, reason(status)) == (FAILED, "WEIGHTS_INCOMPLETE")
    assert f"'{NORM}'" in status.message
    cut = [begin(1, partial=True), part(next(pieces(chunk(NORM, state[NORM]), 8))), commit()]
    code, status = await refused(served, cut)
    assert (code, reason(status)) == (FAILED, "WEIGHTS_INCOMPLETE")
    assert "in part" in status.message
    # Without a commit it is nothing.
    code, status = await refused(served, whole[:-1])
    assert (code, reason(status)) == (grpc.StatusCode.ABORTED, "UPDATE_ABORTED")
    last = (await served.weights()).last_update
    assert last.phase == weights_pb2.WEIGHT_UPDATE_PHASE_ABORTED
    assert "commit" in last.error
    # What the call ended with is told to whoever asks.
    assert (last.failure.code, last.failure.message) == (status.code, status.message)
    assert reason(last.failure) == reason(status)


async def test_unknown_fields(served: WeightServer, state: State) -> None:
    """A field of a later contract is refused wherever it is, a chunk included."""
    whole = chunk(NORM, state[NORM]).SerializeToString() + b"\xf8\x06\x01"  # field 111
    inner = b"\x0a" + _varint(len(whole)) + whole
    in_chunk = b"\x12" + _varint(len(inner)) + inner
    in_part = b"\x12\x03\xf8\x06\x01"
    on_top = part(chunk(NORM, state[NORM])).SerializeToString() + b"\xf8\x06\x01"
    in_begin = begin(1).SerializeToString() + b"\xf8\x06\x01"
    async with grpc.aio.insecure_channel(served.target) as channel:
        push = channel.stream_stream(
            "/scoring.v1.AdminService/PushWeights",
            request_serializer=None,
            response_deserializer=admin_pb2.PushWeightsResponse.FromString,
        )
        opening = begin(1).SerializeToString()
        for messages_ in ([opening, in_chunk], [opening, in_part], [opening, on_top], [in_begin]):
            code, status = await failure(push(iter(messages_)))
            assert (code, reason(status)) == (INVALID, "UNKNOWN_FIELD")
        for broken in (b"\x12\x7f", b"\x12\x04\x0a\x7fab", b"\xff" * 12):
            code, status = await failure(push(iter([opening, broken])))
            assert (code, reason(status)) == (INVALID, "INVALID_FIELD")
    assert not (await served.weights()).HasField("update")


def _varint(number: int) -> bytes:
    out = bytearray()
    while number > 127:
        out.append(number & 127 | 128)
        number >>= 7
    return bytes([*out, number])


async def test_abort(served: WeightServer, state: State) -> None:
    """Somebody else gives the update up; its own call says so."""
    call = served.admin.PushWeights()
    await call.write(begin(1))
    await call.write(part(chunk(NORM, state[NORM])))
    first = await call.read()
    other = admin_pb2.AbortUpdateRequest(update_id="another")
    code, status = await failure_of(served.admin.AbortUpdate(other))
    assert (code, reason(status)) == (grpc.StatusCode.NOT_FOUND, "UPDATE_NOT_FOUND")
    mine = admin_pb2.AbortUpdateRequest(update_id=first.status.update_id)
    answer = await served.admin.AbortUpdate(mine)
    assert answer.status.phase == weights_pb2.WEIGHT_UPDATE_PHASE_ABORTED
    code, status = await failure(the_rest(call))
    assert (code, reason(status)) == (grpc.StatusCode.ABORTED, "UPDATE_ABORTED")
    code, status = await failure_of(served.admin.AbortUpdate(admin_pb2.AbortUpdateRequest()))
    assert reason(status) == "UPDATE_NOT_FOUND"


async def failure_of(call: Any) -> tuple[grpc.StatusCode, Any]:
    """How a call without a stream failed."""

    async def answers() -> AsyncIterator[Any]:
        yield await call

    return await failure(answers())


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def hasty() -> AsyncIterator[WeightServer]:
    """A server that waits for half a second only."""
    admin = AdminConfig(engine=ENGINE, stream_timeout=0.5)
    async with weight_server(admin=admin) as server:
        yield server


async def test_silence(hasty: WeightServer, state: State) -> None:
    """A stream that falls silent is aborted."""
    call = hasty.admin.PushWeights()
    await call.write(begin(1))
    await call.write(part(chunk(NORM, state[NORM])))
    code, status = await failure(call)
    assert (code, reason(status)) == (grpc.StatusCode.ABORTED, "UPDATE_ABORTED")
    assert "0.5 s" in status.message


async def test_an_element_type_that_cannot_be_converted(hasty: WeightServer, state: State) -> None:
    """convert_dtypes is for floating-point types."""
    whole = torch.zeros(state[NORM].shape, dtype=torch.int64)
    requests = [begin(1, convert_dtypes=True), part(chunk(NORM, whole))]
    code, status = await refused(hasty, requests)
    assert (code, violations(status)[0][0]) == (INVALID, "part.chunks[0].dtype")
