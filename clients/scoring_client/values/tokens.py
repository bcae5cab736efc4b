"""Sequences of tokens as callers give them."""

from collections.abc import Mapping, Sequence
from reprlib import repr as short_repr
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from scoring_client.errors import invalid
from scoring_client.values.arrays import Int32Array


class SupportsArray(Protocol):
    """What numpy makes an array of, such as a torch tensor on the CPU."""

    def __array__(self) -> npt.NDArray[Any]:
        """Return the array."""

    def __len__(self) -> int:
        """Return its first extent."""


Tokens = str | Sequence[int] | npt.NDArray[Any] | SupportsArray
"""Text, or token ids."""

_INT32 = np.iinfo(np.int32)
_CHAT = (
    "a chat is tokenised by you, whose template knows where the assistant speaks "
    "(tokenizer.apply_chat_template)"
)


def as_text_or_ids(value: Any, path: str) -> str | Int32Array:
    """Return text as it is and token ids as int32 [T].

    Whatever numpy takes as one-dimensional integers is accepted, a torch tensor on the CPU too.

    Raises:
        InvalidRequestError: neither text nor integers that fit into 32 bits.
    """
    if isinstance(value, str):
        return value
    if isinstance(value, (bytes, int, float, Mapping)) or value is None:
        raise invalid(path, _no_sequence(value))
    array = as_array(value, "token ids [T]", path)
    if array.ndim == 0:
        raise invalid(path, _no_sequence(value))
    if array.dtype.kind in "OU" and (meant := _words_in_a_list(array)):
        raise invalid(path, f"expected text or token ids, got {short_repr(value)}: {meant}")
    if array.size == 0:
        # Python's [] is a float array to numpy. The server says what is wrong with no token.
        return np.empty(0, dtype=np.int32)
    if array.ndim != 1:
        raise invalid(path, f"expected token ids [T], got an array of shape {list(array.shape)}")
    if not np.issubdtype(array.dtype, np.integer):
        raise invalid(path, f"expected integer token ids, got {array.dtype}")
    outside = np.flatnonzero((array < _INT32.min) | (array > _INT32.max))
    if outside.size:
        index = int(outside[0])
        raise invalid(f"{path}.token_ids[{index}]", f"{array[index]} is no 32-bit integer")
    return array.astype(np.int32)


def as_array(value: Any, expected: str, path: str) -> npt.NDArray[Any]:
    """Return what numpy makes of a value.

    Raises:
        InvalidRequestError: nothing, as of lists that differ in length or a tensor on a GPU.
    """
    try:
        return np.asarray(value)
    except (TypeError, ValueError, RuntimeError) as error:
        raise invalid(path, f"expected {expected}, got what is no array: {error}") from error


def whole_sequence_hint(value: Any) -> str:
    """Return how a value that stands in place of a group is scored, or nothing."""
    if is_chat(value):
        return f"; {_CHAT}"
    if isinstance(value, str):
        return (
            "; a whole text is scored as its first token and the rest: "
            "ids = client.tokenize([text])[0], then (ids[:1], [ids[1:]])"
        )
    try:
        ids = np.asarray(value)
    except (TypeError, ValueError, RuntimeError):
        return ""
    if ids.ndim == 1 and len(ids) > 1 and np.issubdtype(ids.dtype, np.integer):
        return "; a whole sequence is scored as its first token and the rest: (ids[:1], [ids[1:]])"
    return ""


def is_chat(value: Any) -> bool:
    """Return whether it is a chat's message, or a list of them."""
    messages = value if isinstance(value, (list, tuple)) else [value]
    return bool(messages) and all(
        isinstance(message, Mapping) and "role" in message for message in messages
    )


def _no_sequence(value: Any) -> str:
    said = f"expected text or token ids, got {short_repr(value)}"
    if is_chat(value):
        return f"{said}: {_CHAT}"
    if isinstance(value, Mapping) and "input_ids" in value:
        return f"{said}: give its ['input_ids']"
    if isinstance(value, (int, np.integer)):
        return f"{said}, a single id; ids stand in a sequence of their own: [{value}, …]"
    return said


def _words_in_a_list(array: npt.NDArray[Any]) -> str:
    """Return what is wrong with texts or messages where a text or ids should be, or nothing."""
    if is_chat(array.tolist()):
        return _CHAT
    return "a text stands alone, in no list" if array.dtype.kind == "U" else ""


def as_sequence(value: Any, what: str, path: str) -> list[Any]:
    """Return a list of items, refusing text, which Python would take apart into characters.

    Raises:
        InvalidRequestError: ``value`` is text or a mapping, or cannot be iterated.
    """
    got = short_repr(value)
    if isinstance(value, (str, bytes, Mapping)) or not hasattr(value, "__iter__"):
        meant = "" if value is None else f"; did you mean [{got}]?"
        raise invalid(path, f"expected a list of {what}, got {got}{meant}")
    try:
        return list(value)
    except (TypeError, RuntimeError) as error:
        # A tensor has __iter__ whatever its layout; an iterator's own errors are the caller's.
        if not hasattr(value, "__array__"):
            raise
        raise invalid(path, f"expected a list of {what}, got {got}: {error}") from error
