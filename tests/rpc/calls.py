"""Calls and what came of them, for the tests of the contract."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import grpc
import numpy as np
from google.rpc import error_details_pb2, status_pb2

from scoring_client.proto import score_pb2, sequence_pb2, tensor_pb2


def group(prompt: list[int] | str, *completions: list[int] | str, **fields: Any) -> Any:
    """A PromptGroup of ids or texts."""
    return sequence_pb2.PromptGroup(
        prompt=sequence_pb2.TokenSequence(**tokens(prompt)),
        completions=[sequence_pb2.Completion(**tokens(c)) for c in completions],
        **fields,
    )


def tokens(sequence: list[int] | str) -> dict[str, Any]:
    """Fields of a sequence."""
    return {"text": sequence} if isinstance(sequence, str) else {"token_ids": sequence}


async def collect(call: Any) -> list[Any]:
    """Every message of an answer."""
    return [message async for message in call]


def score_slices(messages: list[Any]) -> dict[tuple[int, int], list[score_pb2.ScoreResult]]:
    """(group, completion) -> its slices in order of arrival."""
    found = defaultdict(list)
    for message in messages:
        for result in message.results:
            found[result.group_index, result.completion_index].append(result)
    return found


async def score_one(stub: Any, request: score_pb2.ScoreRequest) -> score_pb2.ScoreResult:
    """The only slice of the only completion."""
    slices = score_slices(await collect(stub.Score(request)))
    assert list(slices) == [(0, 0)]
    (result,) = slices[0, 0]
    assert not result.HasField("status"), result.status.message
    assert result.last
    return result


async def failure(call: Any) -> tuple[grpc.StatusCode, status_pb2.Status]:
    """How a call ended that had to fail."""
    try:
        messages = await (call if isinstance(call, grpc.aio.UnaryUnaryCall) else collect(call))
    except grpc.aio.AioRpcError as error:
        for key, value in error.trailing_metadata() or ():
            if key == "grpc-status-details-bin":
                return error.code(), status_pb2.Status.FromString(value)
        return error.code(), status_pb2.Status(message=error.details())
    raise AssertionError(f"the call was answered: {messages}")


def reason(status: status_pb2.Status) -> str:
    """ErrorInfo.reason."""
    info = error_details_pb2.ErrorInfo()
    (detail,) = [d for d in status.details if d.Unpack(info)]
    assert detail is not None
    return info.reason


def violations(status: status_pb2.Status) -> list[tuple[str, str]]:
    """(field path, description) of BadRequest."""
    bad = error_details_pb2.BadRequest()
    for detail in status.details:
        if detail.Unpack(bad):
            return [(v.field, v.description) for v in bad.field_violations]
    return []


def array(tensor: tensor_pb2.Tensor) -> np.ndarray:
    """A tensor in either encoding."""
    kind = "<i4" if tensor.dtype == tensor_pb2.DATA_TYPE_INT32 else "<f4"
    if tensor.data:
        return np.frombuffer(tensor.data, dtype=kind).reshape(tensor.shape)
    plain = tensor.ints if tensor.dtype == tensor_pb2.DATA_TYPE_INT32 else tensor.floats
    return np.array(plain, dtype=kind).reshape(tensor.shape)
