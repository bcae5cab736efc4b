"""Bytes that are no message: an answer to the caller rather than a traceback in the log."""

from __future__ import annotations

from collections.abc import Callable
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

from google.protobuf.message import DecodeError

from scoring_service.errors import Fault, Reason


@dataclass(frozen=True, slots=True)
class MalformedRequest:
    """Stands for a request that could not be read."""

    description: str

    @property
    def fault(self) -> Fault:
        """What its caller is told."""
        return Fault(
            Reason.INVALID_FIELD, f"the request's bytes are no message: {self.description}"
        )


_received: ContextVar[int | None] = ContextVar("received", default=None)


def received_bytes() -> int | None:
    """Of the message that this call read last, as it came; None outside of a call.

    To ask the message itself is a pass over all of it, during which no other thread runs.
    """
    return _received.get()


def catch_decode_errors(
    deserialize: Callable[[bytes], Any] | None,
) -> Callable[[bytes], Any] | None:
    """A deserialiser that gives a MalformedRequest where the other one raises.

    Left to itself gRPC answers UNKNOWN, quotes the exception and logs a traceback a call.
    """
    if deserialize is None:
        return None

    def read(data: bytes) -> Any:
        _received.set(len(data))
        try:
            return deserialize(data)
        except DecodeError as error:
            return MalformedRequest(str(error))

    return read
