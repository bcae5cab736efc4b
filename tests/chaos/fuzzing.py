"""Requests made from their descriptors: every field, at its edges, well-formed on the wire."""

from __future__ import annotations

import random
from typing import Any

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message

from scoring_client.proto import (
    admin_pb2,
    model_info_pb2,
    sample_pb2,
    score_pb2,
    tokenize_pb2,
    topk_pb2,
)

REQUESTS: dict[str, type[Message]] = {
    "Score": score_pb2.ScoreRequest,
    "TopKLogprobs": topk_pb2.TopKLogprobsRequest,
    "Sample": sample_pb2.SampleRequest,
    "GetModelInfo": model_info_pb2.GetModelInfoRequest,
    "ListModels": model_info_pb2.ListModelsRequest,
    "Tokenize": tokenize_pb2.TokenizeRequest,
}

ADMIN_REQUESTS: dict[str, type[Message]] = {
    "GetWeights": admin_pb2.GetWeightsRequest,
    "AbortUpdate": admin_pb2.AbortUpdateRequest,
    "FlushCache": admin_pb2.FlushCacheRequest,
    "Resume": admin_pb2.ResumeRequest,
}
"""Those of AdminService after which everything else is answered as before."""

_SMALL = [0, 1, 2, 3, 5, 17, 64]
_INT_EDGES = [-(2**31), -1, 2047, 2048, 4096, 65_536, 2**31 - 1]
_LONG_EDGES = [-(2**63), -1, 2**53 + 1, 2**63 - 1]
_FLOATS = [0.0, -0.0, 1.0, 0.5, 0.7, 1.5, -1.0, 1e-5, 1e30, float("inf"), float("nan")]
_TEXTS = ["", "a", "import numpy as", " np", "\x00", "é漢🙂", "x" * 500, "tiny"]


def request(rng: random.Random, kind: type[Message]) -> Message:
    """A request: mostly what a server could answer, somewhere what it could not."""
    found = kind()
    _fill(found, rng, depth=0, wild=rng.choice((0.0, 0.05, 0.5)))
    # Sample takes no work without this, so most would be refused for the same reason.
    if isinstance(found, sample_pb2.SampleRequest) and rng.random() < 0.7:
        found.sampling.max_tokens = rng.choice((1, 3, 8))
    if hasattr(found, "model") and rng.random() < 0.9:
        found.model = ""
    return found


def _fill(message: Any, rng: random.Random, depth: int, wild: float) -> None:
    for field in message.DESCRIPTOR.fields:
        if rng.random() < 0.5 + 0.1 * depth and field.name not in ("groups", "prompts", "prompt"):
            continue
        if field.name in ("expect", "context") and rng.random() < 0.7:
            continue
        if field.containing_oneof is not None and message.WhichOneof(field.containing_oneof.name):
            continue
        if field.is_repeated:
            _repeat(message, field, rng, depth, wild)
        elif field.type == FieldDescriptor.TYPE_MESSAGE:
            _fill(getattr(message, field.name), rng, depth + 1, wild)
            getattr(message, field.name).SetInParent()
        else:
            setattr(message, field.name, _value(field, rng, wild))


def _repeat(message: Any, field: Any, rng: random.Random, depth: int, wild: float) -> None:
    values = getattr(message, field.name)
    count = rng.choice((0, 1, 1, 2, 3)) if depth < 4 else rng.choice((0, 1))
    if field.message_type is not None and field.message_type.GetOptions().map_entry:
        for _ in range(count):
            values[rng.choice(_TEXTS)] = rng.choice(_TEXTS)
    elif field.type == FieldDescriptor.TYPE_MESSAGE:
        for _ in range(count):
            _fill(values.add(), rng, depth + 1, wild)
    else:
        if field.name == "token_ids" and rng.random() < 0.8:
            count = rng.choice((1, 4, 40, 200))
        values.extend(_value(field, rng, wild) for _ in range(count))


def _value(field: Any, rng: random.Random, wild: float) -> Any:
    kind = field.cpp_type
    is_wild = rng.random() < wild
    if kind == FieldDescriptor.CPPTYPE_BOOL:
        return rng.random() < 0.5
    if kind in (FieldDescriptor.CPPTYPE_FLOAT, FieldDescriptor.CPPTYPE_DOUBLE):
        return rng.choice(_FLOATS if is_wild else (1.0, 0.5, 0.9))
    if kind == FieldDescriptor.CPPTYPE_ENUM:
        numbers = [value.number for value in field.enum_type.values]
        return rng.choice([*numbers, 99, -7]) if is_wild else rng.choice(numbers)
    if kind == FieldDescriptor.CPPTYPE_STRING:
        if field.type == FieldDescriptor.TYPE_BYTES:
            return rng.randbytes(rng.choice((0, 4, 8, 13)))
        return rng.choice(_TEXTS)
    if field.name == "token_ids" and not is_wild:
        return rng.randrange(2048)
    value = rng.choice((*_INT_EDGES, *_LONG_EDGES) if is_wild else _SMALL)
    least, most = _RANGES[kind]
    return min(max(value, least), most)


_RANGES = {
    FieldDescriptor.CPPTYPE_INT32: (-(2**31), 2**31 - 1),
    FieldDescriptor.CPPTYPE_INT64: (-(2**63), 2**63 - 1),
    FieldDescriptor.CPPTYPE_UINT32: (0, 2**32 - 1),
    FieldDescriptor.CPPTYPE_UINT64: (0, 2**64 - 1),
}


def mangled(rng: random.Random, data: bytes) -> bytes:
    """Bytes that were a request, or never were one."""
    if not data or rng.random() < 0.2:
        return rng.randbytes(rng.randrange(200))
    found = bytearray(data)
    for _ in range(rng.randint(1, 8)):
        place = rng.randrange(len(found))
        action = rng.randrange(3)
        if action == 0:
            found[place] ^= 1 << rng.randrange(8)
        elif action == 1:
            found[place:place] = rng.randbytes(rng.randrange(5))
        elif len(found) > 1:
            del found[place : place + rng.randrange(1, 5)]
        if not found:
            break
    return bytes(found)
