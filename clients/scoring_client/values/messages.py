"""Filling in messages from values that callers gave."""

from reprlib import repr as short_repr
from typing import Any

import numpy as np
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message

from scoring_client.errors import invalid

_KINDS = {
    FieldDescriptor.CPPTYPE_BOOL: "True or False",
    FieldDescriptor.CPPTYPE_DOUBLE: "a number",
    FieldDescriptor.CPPTYPE_FLOAT: "a number",
    FieldDescriptor.CPPTYPE_INT32: "an integer of 32 bits",
    FieldDescriptor.CPPTYPE_INT64: "an integer of 64 bits",
    FieldDescriptor.CPPTYPE_STRING: "text",
    FieldDescriptor.CPPTYPE_UINT64: "an integer in [0, 2^64)",
}


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
        field, where = getattr(message, name), f"{path}.{name}" if path else name
        kind = message.DESCRIPTOR.fields_by_name[name].cpp_type
        try:
            if hasattr(field, "extend"):
                field.extend(value)
            elif hasattr(field, "update"):
                field.update(value)
            elif _is_bool(value) and kind != FieldDescriptor.CPPTYPE_BOOL:
                raise TypeError("a bool is no number")
            else:
                setattr(message, name, value)
        except UnicodeEncodeError as error:
            raise invalid(where, no_unicode(error)) from error
        except (TypeError, ValueError) as error:
            wanted = _KINDS.get(kind, "another type")
            if hasattr(field, "update"):
                wanted = "a mapping from text to text"
            elif hasattr(field, "extend"):
                wanted = f"a list of which each is {wanted}"
            got = short_repr(value)
            raise invalid(where, f"{got} does not fit the field: expected {wanted}") from error


def _is_bool(value: Any) -> bool:
    return isinstance(value, (bool, np.bool_))


def no_unicode(error: UnicodeEncodeError) -> str:
    """Return what is wrong with a text that cannot be sent."""
    return (
        f"character {error.start} is {error.object[error.start]!r}, half of a surrogate pair, and "
        "cannot be sent: decode bytes with errors='replace', or give token ids"
    )
