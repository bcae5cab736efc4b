"""Finds fields that this server does not know: they are refused, never ignored."""

from __future__ import annotations

from functools import cache

from google.protobuf.descriptor import Descriptor
from google.protobuf.message import Message
from google.protobuf.unknown_fields import UnknownFieldSet

from scoring_service.errors import Fault, Reason, ServiceError, Violation, invalid
from scoring_service.rpc.handling.malformed import received_bytes

MAX_MESSAGES = 1 << 21
"""Messages inside a request: a second of walking. A call of as many items as one may have, each
with a dozen spans of rows, has half of them."""


_LARGE = 1 << 19
"""Bytes in one message, beside those inside it, from which they are looked at before their fields
are taken apart: an object for each takes 60 times as much."""

_MAX_UNKNOWN = 4096
"""Bytes of unknown fields in a message that are still searched for the first."""


def refuse_unknown_fields(message: Message) -> None:
    """Raises when the message, or one inside it, carries a field of a later contract.

    Messages are looked at one by one: to drop unknown fields from a copy and compare is one pass in
    C, during which no other thread runs, the one that answers all others among them. Of 20 MB that
    takes a quarter of a second; and this does not even look at what most of them are, token ids.

    Raises:
        ServiceError: UNKNOWN_FIELD with the field's path and number, or with neither where there
            are very many; INVALID_FIELD where there are more than `MAX_MESSAGES` to look at.
    """
    size = received_bytes()
    size = message.ByteSize() if size is None else size
    if unknown := _many_bytes(message, size, [MAX_MESSAGES]):
        text = f"request: {unknown} bytes in one message are not known to this server"
        raise ServiceError(Fault(Reason.UNKNOWN_FIELD, text))
    found = _find(message, [MAX_MESSAGES])
    if found is None:
        return
    path, number = found
    description = f"field number {number} is not known to this server (is the client newer?)"
    where = path.removeprefix(".") or "request"
    fault = Fault(Reason.UNKNOWN_FIELD, f"{where}: {description}", (Violation(where, description),))
    raise ServiceError(fault)


def _many_bytes(message: Message, size: int, left: list[int]) -> int:
    """Bytes of unknown fields in one message, itself or inside, where they are very many; else 0.

    Args:
        message: with what is inside it.
        size: bytes that it takes, or more.
        left: messages that may still be looked at; counted down.
    """
    if size < _LARGE:
        return 0
    for name, is_repeated in _inner_messages(message.DESCRIPTOR):
        if not is_repeated and not message.HasField(name):
            continue
        items = getattr(message, name) if is_repeated else (getattr(message, name),)
        _count(len(items), left)
        for item in items:
            taken = item.ByteSize()
            size -= taken
            if unknown := _many_bytes(item, taken, left):
                return unknown
    if size < _LARGE:
        return 0
    # Rare enough for passes in C over all of it: so much are ids, text, or tensors of one sequence.
    known = type(message)()
    known.CopyFrom(message)
    known.DiscardUnknownFields()
    unknown = message.ByteSize() - known.ByteSize()
    return unknown if unknown > _MAX_UNKNOWN else 0


def _count(messages: int, left: list[int]) -> None:
    """Raises where more are looked at than may be."""
    left[0] -= messages
    if left[0] < 0:
        raise invalid("request", f"more than {MAX_MESSAGES} messages in one: divide the call")


def _find(message: Message, left: list[int]) -> tuple[str, int] | None:
    """Path, each step with a dot before it, and number of the first unknown field.

    Args:
        message: with what is inside it.
        left: messages that may still be looked at; counted down.
    """
    _count(1, left)
    unknown = UnknownFieldSet(message)
    if len(unknown):
        return "", unknown[0].field_number
    for name, is_repeated in _inner_messages(message.DESCRIPTOR):
        if is_repeated:
            for index, item in enumerate(getattr(message, name)):
                if (found := _find(item, left)) is not None:
                    return f".{name}[{index}]{found[0]}", found[1]
        elif message.HasField(name) and (found := _find(getattr(message, name), left)) is not None:
            return f".{name}{found[0]}", found[1]
    return None


@cache
def _inner_messages(descriptor: Descriptor) -> list[tuple[str, bool]]:
    """(name, whether repeated) of the fields that hold messages, maps aside."""
    return [
        (field.name, field.is_repeated)
        for field in descriptor.fields
        if field.message_type is not None and not field.message_type.GetOptions().map_entry
    ]
