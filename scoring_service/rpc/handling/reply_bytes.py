"""How many bytes a call was sent, counted where gRPC has its messages serialised, and only there.

Asking a message for its size serialises all of it; with a megabyte of a top-K list that takes as
long as sending it does.
"""

from __future__ import annotations

from collections.abc import Callable
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any


@dataclass(slots=True)
class ReplyBytes:
    """What was sent so far."""

    total: int = 0


_of_this_call: ContextVar[ReplyBytes] = ContextVar("reply_bytes")

Serializer = Callable[[Any], bytes]


def counted(serialize: Serializer | None) -> Serializer | None:
    """The serialiser of one call's messages, such that their bytes are counted.

    A message that a handler yields is serialised before the handler is asked for the next one.

    Args:
        serialize: of the RPC; None where it sends bytes as they are.
    """
    sent = ReplyBytes()
    # The call runs in this very task, and its context ends with it.
    _of_this_call.set(sent)
    if serialize is None:
        return None

    def write(message: Any) -> bytes:
        data = serialize(message)
        sent.total += len(data)
        return data

    return write


def reply_bytes() -> ReplyBytes:
    """Of the call that asks.

    Raises:
        LookupError: its serialiser is not counted.
    """
    return _of_this_call.get()
