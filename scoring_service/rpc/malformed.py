"""Bytes that are no message: an answer to the caller rather than a traceback in the log."""

from __future__ import annotations

from collections.abc import Callable
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


def catch_decode_errors(
    deserialize: Callable[[bytes], Any] | None,
) -> Callable[[bytes], Any] | None:
    """A deserialiser that gives a MalformedRequest where the other one raises.

    Left to itself gRPC answers UNKNOWN, quotes the exception and logs a traceback a call.
    """
    if deserialize is None:
        return None

    def read(data: bytes) -> Any:
        try:
            return deserialize(data)
        except DecodeError as error:
            return MalformedRequest(str(error))

    return read
