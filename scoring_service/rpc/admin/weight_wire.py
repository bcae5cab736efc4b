"""Reads a message of a stream of weights without copying its tensors.

protobuf would copy every `data` into its own memory and again into a `bytes`. Here the message is
walked on the wire, `data` stays where gRPC put it, and the rest of a chunk, a few dozen bytes, is
parsed as usual. It is the same message: https://protobuf.dev/programming-guides/encoding/.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from google.protobuf.message import DecodeError

from scoring_client.proto import admin_pb2, weights_pb2

_LENGTH_DELIMITED = 2
_PART = admin_pb2.PushWeightsRequest.PART_FIELD_NUMBER << 3 | _LENGTH_DELIMITED
_CHUNKS = admin_pb2.PushWeightsPart.CHUNKS_FIELD_NUMBER << 3 | _LENGTH_DELIMITED
_DATA = weights_pb2.WeightChunk.DATA_FIELD_NUMBER << 3 | _LENGTH_DELIMITED


@dataclass(frozen=True, slots=True)
class WirePart:
    """A `part`, its tensors' bytes still in the message."""

    chunks: list[tuple[weights_pb2.WeightChunk, memoryview]]
    """Each without its `data`, and that."""


def read_push(message: bytes) -> admin_pb2.PushWeightsRequest | WirePart:
    """A message of the stream; a `part` without a copy of its tensors.

    Raises:
        DecodeError: the bytes are no message.
    """
    view = memoryview(message)
    fields = list(_fields(view))
    if [tag for tag, _, _ in fields] != [_PART]:
        # Not a part, or one with something beside it: nothing large that would be well-formed.
        return admin_pb2.PushWeightsRequest.FromString(message)
    chunks = []
    for tag, whole, content in _fields(fields[0][2]):
        if tag != _CHUNKS:
            # Kept as a field that is not known, which is refused as everywhere.
            unknown = admin_pb2.PushWeightsPart.FromString(bytes(whole))
            return admin_pb2.PushWeightsRequest(part=unknown)
        chunks.append(_chunk(content))
    return WirePart(chunks)


def _chunk(view: memoryview) -> tuple[weights_pb2.WeightChunk, memoryview]:
    data = view[:0]
    rest = bytearray()
    for tag, whole, content in _fields(view):
        if tag == _DATA:
            data = content  # the last one counts, as for every field that is not repeated
        else:
            rest += whole
    return weights_pb2.WeightChunk.FromString(bytes(rest)), data


def _fields(view: memoryview) -> Iterator[tuple[int, memoryview, memoryview]]:
    """(tag, the field with its tag, its content) of every field.

    Raises:
        DecodeError: the bytes are no message.
    """
    place = 0
    while place < len(view):
        start = place
        tag, place = _varint(view, place)
        kind = tag & 7
        if kind == _LENGTH_DELIMITED:
            size, place = _varint(view, place)
        elif kind == 0:
            content = place
            _, place = _varint(view, place)
            yield tag, view[start:place], view[content:place]
            continue
        elif kind in (1, 5):
            size = 8 if kind == 1 else 4
        else:
            raise DecodeError(f"wire type {kind}")
        if size > len(view) - place:
            raise DecodeError("a field goes on beyond the end")
        yield tag, view[start : place + size], view[place : place + size]
        place += size


def _varint(view: memoryview, place: int) -> tuple[int, int]:
    value = shift = 0
    while place < len(view) and shift < 64:
        byte = view[place]
        value |= (byte & 127) << shift
        place += 1
        if byte < 128:
            return value, place
        shift += 7
    raise DecodeError("a number goes on beyond the end")
