"""Filling in messages from values that callers gave."""

from typing import Any

from google.protobuf.message import Message

from scoring_client.errors import invalid


def set_fields(message: Message, path: str, **values: Any) -> None:
    """Set the fields whose value is not None; fields with presence stay unset otherwise.

    Args:
        message: Where to set them.
        path: Path of the message in the request, for errors; "" at its root.
        values: Plain values by field name. Repeated fields take sequences.

    Raises:
        InvalidRequestError: a value of the wrong type, or beyond the field's range.
    """
    for name, value in values.items():
        if value is None:
            continue
        try:
            field = getattr(message, name)
            if hasattr(field, "extend"):
                field.extend(value)
            elif hasattr(field, "update"):
                field.update(value)
            else:
                setattr(message, name, value)
        except (TypeError, ValueError) as error:
            where = f"{path}.{name}" if path else name
            raise invalid(where, f"{value!r} does not fit the field ({error})") from error
