"""Finds fields that this server does not know: they are refused, never ignored."""

from __future__ import annotations

from google.protobuf.message import Message
from google.protobuf.unknown_fields import UnknownFieldSet

from scoring_service.errors import Fault, Reason, ServiceError, Violation


def refuse_unknown_fields(message: Message) -> None:
    """Raises when the message, or one inside it, carries a field of a later contract.

    Raises:
        ServiceError: UNKNOWN_FIELD with the field's path and number.
    """
    # Dropping unknown fields from a copy is one pass in C; the walk in Python is for the path only.
    known = type(message)()
    known.CopyFrom(message)
    known.DiscardUnknownFields()
    if known.ByteSize() == message.ByteSize():
        return
    path, number = _find(message, "") or ("", 0)
    description = f"field number {number} is not known to this server (is the client newer?)"
    where = path or "request"
    fault = Fault(Reason.UNKNOWN_FIELD, f"{where}: {description}", (Violation(where, description),))
    raise ServiceError(fault)


def _find(message: Message, path: str) -> tuple[str, int] | None:
    unknown = UnknownFieldSet(message)
    if len(unknown):
        return path, unknown[0].field_number
    for field, value in message.ListFields():
        inner = field.message_type
        if inner is None or inner.GetOptions().map_entry:
            continue
        here = f"{path}.{field.name}" if path else field.name
        items = enumerate(value) if field.is_repeated else [(None, value)]
        for index, item in items:
            found = _find(item, here if index is None else f"{here}[{index}]")
            if found is not None:
                return found
    return None
