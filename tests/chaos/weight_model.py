"""What the contract makes of a stream of weights, worked out from its text alone."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
from google.protobuf.message import DecodeError, Message
from google.protobuf.unknown_fields import UnknownFieldSet

from scoring_client.proto import admin_pb2, weights_pb2
from tests.contract_digest import contract_digest

SIZES = {
    "bfloat16": 2, "float16": 2, "float32": 4, "float64": 8, "float8_e4m3fn": 1, "float8_e5m2": 1,
    "int8": 1, "uint8": 1, "int16": 2, "int32": 4, "int64": 8, "bool": 1,
}  # fmt: skip
"""Bytes of an element."""


class Refused(Exception):  # noqa: N818  it is no error here
    """The stream is none that changes weights."""


@dataclass(frozen=True)
class Weights:
    """All tensors of a model, under their first names."""

    version: int
    specs: dict[str, weights_pb2.WeightTensor]
    """By name, tied ones with both."""
    tensors: dict[str, bytes]

    @property
    def digest(self) -> str:
        """As the contract defines it."""
        kinds = {name: (dtype_of(spec), spec.shape) for name, spec in self.specs.items()}
        return contract_digest({name: (*kinds[name], data) for name, data in self.tensors.items()})


def dtype_of(message: weights_pb2.WeightTensor | weights_pb2.WeightChunk) -> str:
    """Name of the element type; empty for a number that is none."""
    if message.dtype not in weights_pb2.WeightDataType.values() or not message.dtype:
        return ""
    name = weights_pb2.WeightDataType.Name(message.dtype)
    return name.removeprefix("WEIGHT_DATA_TYPE_").lower()


def pushed(stream: Iterable[bytes], running: Weights) -> Weights:
    """The weights that answer after a stream that nobody disturbs.

    Raises:
        Refused: those that ran before it go on.
    """
    steps = iter(stream)
    begin = _step(steps)
    if begin.WhichOneof("step") != "begin" or begin.begin.model not in ("", "tiny"):
        raise Refused
    options = begin.begin.options
    check_options(options, running)
    given: dict[str, str] = {}
    data: dict[str, bytearray] = {}
    dtypes: dict[str, str] = {}
    while (message := _step(steps)).WhichOneof("step") == "part":
        if not message.part.chunks:
            raise Refused
        for chunk in message.part.chunks:
            _take(chunk, running, options.convert_dtypes, given, data, dtypes)
    if message.WhichOneof("step") != "commit":
        raise Refused
    tensors = {}
    for name, old in running.tensors.items():
        spec = running.specs[name]
        if name not in data and not options.partial:
            raise Refused
        if name in data and len(data[name]) != prod(spec.shape) * SIZES[dtypes[name]]:
            raise Refused
        tensors[name] = _converted(data[name], dtypes[name], spec) if name in data else old
    new = Weights(options.version, running.specs, tensors)
    check_digest(new.digest, options.weights_digest, message.commit.weights_digest)
    if options.version == running.version and new.digest != running.digest:
        raise Refused
    return new


def check_options(options: weights_pb2.WeightUpdateOptions, running: Weights) -> None:
    """Raises Refused where an update with these cannot begin."""
    newer = options.allow_older_version or options.version > running.version
    based = not options.HasField("base_version") or options.base_version == running.version
    known = options.running_samples in range(4) and options.staging in range(4)
    if not (options.HasField("version") and newer and based and known):
        raise Refused


def check_digest(found: str, *wanted: str) -> None:
    """Raises Refused where one is wanted that is not found."""
    if any(digest and digest.lower() != found for digest in wanted):
        raise Refused


def _step(steps: Any) -> admin_pb2.PushWeightsRequest:
    try:
        message = admin_pb2.PushWeightsRequest.FromString(next(steps))
    except (StopIteration, DecodeError):
        raise Refused from None
    if has_unknown(message):
        raise Refused
    return message


def has_unknown(message: Message) -> bool:
    """Whether a field of a later contract is somewhere in it."""
    if len(UnknownFieldSet(message)):
        return True
    inner = [value for field, value in message.ListFields() if field.message_type is not None]
    items = [item for value in inner for item in ([value] if isinstance(value, Message) else value)]
    return any(map(has_unknown, items))


def _take(
    chunk: weights_pb2.WeightChunk,
    running: Weights,
    converts: bool,
    given: dict[str, str],
    data: dict[str, bytearray],
    dtypes: dict[str, str],
) -> None:
    spec = running.specs.get(chunk.name)
    dtype = dtype_of(chunk)
    if spec is None or not dtype or list(chunk.shape) != list(spec.shape):
        raise Refused
    first = spec.tied_to or spec.name
    if given.setdefault(first, chunk.name) != chunk.name:
        raise Refused
    floating = "float" in dtype and "float" in dtype_of(spec)
    if dtype != dtype_of(spec) and not (converts and floating):
        raise Refused
    if dtypes.setdefault(first, dtype) != dtype:
        raise Refused
    held = data.setdefault(first, bytearray())
    size = prod(spec.shape) * SIZES[dtype]
    if chunk.offset != len(held) or len(held) + len(chunk.data) > size:
        raise Refused
    if not chunk.data and size:
        raise Refused
    held += chunk.data


def _converted(data: bytearray, dtype: str, spec: weights_pb2.WeightTensor) -> bytes:
    """Elements in the model's type; a bfloat16 is the upper half of a rounded float32."""
    if dtype == dtype_of(spec):
        return bytes(data)
    assert dtype_of(spec) == "bfloat16", "the packaged model's"
    bits = np.frombuffer(bytes(data), dtype).astype(np.float32).view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16).tobytes()
