"""Finds fields that this server does not know: they are refused, never ignored."""

from __future__ import annotations

from functools import cache

from google.protobuf.descriptor import Descriptor
from google.protobuf.message import Message
from google.protobuf.unknown_fields import UnknownFieldSet

from scoring_service.errors import Fault, Reason, ServiceError, Violation, invalid

MAX_MESSAGES = 1 << 21
"""Messages inside a request: a second of walking. A call of as many items as one may have, each
with a dozen spans of rows, has half of them."""


def refuse_unknown_fields(message: Message) -> None:
    """Raises when the message, or one inside it, carries a field of a later contract.

    Messages are looked at one by one: to drop unknown fields from a copy and compare is one pass in
    C, during which no other thread runs, the one that answers all others among them. Of 20 MB that
    takes a quarter of a second; and this does not even look at what most of them are, token ids.

    Raises:
        ServiceError: UNKNOWN_FIELD with the field's path and number; INVALID_FIELD where there are
            more than `MAX_MESSAGES` to look at.
    """
    found = _find(message, [MAX_MESSAGES])
    if found is None:
        return
    path, number = found
    description = f"field number {number} is not known to this server (is the client newer?)"
    where = path.removeprefix(".") or "request"
    fault = Fault(Reason.UNKNOWN_FIELD, f"{where}: {description}", (Violation(where, description),))
    raise ServiceError(fault)


def _find(message: Message, left: list[int]) -> tuple[str, int] | None:
    """Path, each step with a dot before it, and number of the first unknown field.

    Args:
        message: with what is inside it.
        left: messages that may still be looked at; counted down.
    """
    left[0] -= 1
    if left[0] < 0:
        raise invalid("request", f"more than {MAX_MESSAGES} messages in one: divide the call")
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
