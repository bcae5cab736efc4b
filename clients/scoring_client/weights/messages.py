"""Messages of a stream of weights, written straight from a trainer's memory.

A protobuf message with a bytes field would copy a tensor three times: into the message, out of it,
and into gRPC. Here the few bytes of framing are made by protobuf, or by its rules, and the tensor's
bytes are joined with them in the one copy that gRPC needs. What results is an ordinary
PushWeightsRequest.
"""

from collections.abc import Callable, Iterator

from scoring_client.proto import admin_pb2, weights_pb2
from scoring_client.weights.given import GivenWeights
from scoring_client.weights.message_memory import keep_message_memory
from scoring_client.weights.plan import WeightPlan
from scoring_client.weights.tensors import HostTensor

CHUNK_BYTES = 2 << 20
"""Bytes of tensors in a message."""

_LENGTH_DELIMITED = 2
_PART = admin_pb2.PushWeightsRequest.DESCRIPTOR.fields_by_name["part"].number
_CHUNKS = admin_pb2.PushWeightsPart.DESCRIPTOR.fields_by_name["chunks"].number
_DATA = weights_pb2.WeightChunk.DESCRIPTOR.fields_by_name["data"].number


def part_messages(
    plan: WeightPlan,
    given: GivenWeights,
    *,
    chunk_bytes: int = CHUNK_BYTES,
    on_bytes: Callable[[int], None] | None = None,
) -> Iterator[bytes]:
    """Yield serialised PushWeightsRequests with all tensors, of at most ``chunk_bytes`` of data.

    Lazily: a tensor is read when its first byte is due.

    Args:
        plan: What to send.
        given: The trainer's tensors.
        chunk_bytes: Small tensors share a message, large ones are cut.
        on_bytes: Told how many bytes of tensors each message holds, before it is yielded.

    Raises:
        InvalidRequestError: as of ``WeightPlan.read``.
    """
    keep_message_memory()
    part = _Part()
    for tensor in plan.read(given):
        offset = 0
        while True:
            piece = tensor.data[offset : offset + chunk_bytes - part.size]
            if plan.digest is not None:
                plan.digest.update(piece)
            part.add(tensor, offset, piece)
            offset += len(piece)
            if part.size >= chunk_bytes:
                yield part.take(on_bytes)
            if offset >= len(tensor.data):
                break
        if tensor.volatile:
            part.own()
    if part.size or part.chunks:
        yield part.take(on_bytes)


class _Part:
    """Pieces of tensors that go into one message."""

    def __init__(self) -> None:
        self.size = 0
        self.chunks: list[tuple[bytes, memoryview | bytes]] = []

    def add(self, tensor: HostTensor, offset: int, data: memoryview) -> None:
        self.chunks.append((_chunk_head(tensor, offset, len(data)), data))
        self.size += len(data)

    def own(self) -> None:
        """Copy what must not be looked at later."""
        self.chunks = [(head, bytes(data)) for head, data in self.chunks]

    def take(self, on_bytes: Callable[[int], None] | None) -> bytes:
        """Return the message and begin another."""
        if on_bytes is not None:
            on_bytes(self.size)
        framed: list[bytes | memoryview] = []
        total = 0
        for head, data in self.chunks:
            length = len(head) + len(data)
            frame = _tag(_CHUNKS) + _varint(length)
            framed += (frame, head, data)
            total += len(frame) + length
        self.size, self.chunks = 0, []
        return b"".join((_tag(_PART) + _varint(total), *framed))


def _chunk_head(tensor: HostTensor, offset: int, size: int) -> bytes:
    """Return a WeightChunk up to where its data begin: fields stand in order, and data are last."""
    head = weights_pb2.WeightChunk(
        name=tensor.name,
        dtype=f"WEIGHT_DATA_TYPE_{tensor.dtype.upper()}",
        shape=tensor.shape,
        offset=offset,
    ).SerializeToString()
    return head + _tag(_DATA) + _varint(size) if size else head


def _tag(field: int) -> bytes:
    return _varint(field << 3 | _LENGTH_DELIMITED)


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)
