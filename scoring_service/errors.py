"""Faults as data, and the exception that carries one.

Rooms below `rpc` know nothing of gRPC: a code here has the name of the gRPC status code that
`rpc.handling.status` turns it into.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

_MIN_RETRY, _MAX_RETRY = 0.1, 300.0
"""Seconds, within which callers are told to come back."""


class Code(StrEnum):
    """Names of the gRPC status codes in use."""

    INVALID_ARGUMENT = "INVALID_ARGUMENT"
    NOT_FOUND = "NOT_FOUND"
    FAILED_PRECONDITION = "FAILED_PRECONDITION"
    RESOURCE_EXHAUSTED = "RESOURCE_EXHAUSTED"
    UNAVAILABLE = "UNAVAILABLE"
    DEADLINE_EXCEEDED = "DEADLINE_EXCEEDED"
    CANCELLED = "CANCELLED"
    ABORTED = "ABORTED"
    UNAUTHENTICATED = "UNAUTHENTICATED"
    PERMISSION_DENIED = "PERMISSION_DENIED"
    INTERNAL = "INTERNAL"


class Reason(StrEnum):
    """`ErrorInfo.reason`: the fixed list that `service.proto` and `admin.proto` document."""

    INVALID_FIELD = "INVALID_FIELD"
    UNKNOWN_FIELD = "UNKNOWN_FIELD"
    MODEL_NOT_FOUND = "MODEL_NOT_FOUND"
    WEIGHT_VERSION_MISMATCH = "WEIGHT_VERSION_MISMATCH"
    WEIGHTS_DIGEST_MISMATCH = "WEIGHTS_DIGEST_MISMATCH"
    TOKENIZER_DIGEST_MISMATCH = "TOKENIZER_DIGEST_MISMATCH"
    NOT_DETERMINISTIC = "NOT_DETERMINISTIC"
    TOKENIZER_UNAVAILABLE = "TOKENIZER_UNAVAILABLE"
    UNSUPPORTED_GENERATION_CONFIG = "UNSUPPORTED_GENERATION_CONFIG"
    NON_FINITE_LOGITS = "NON_FINITE_LOGITS"
    QUEUE_FULL = "QUEUE_FULL"
    OUT_OF_MEMORY = "OUT_OF_MEMORY"
    LOADING = "LOADING"
    AWAITING_WEIGHTS = "AWAITING_WEIGHTS"
    DRAINING = "DRAINING"
    WORKER_DIED = "WORKER_DIED"
    CRASH_LOOP = "CRASH_LOOP"
    READER_STALLED = "READER_STALLED"
    UNAUTHENTICATED = "UNAUTHENTICATED"
    PERMISSION_DENIED = "PERMISSION_DENIED"
    WEIGHTS_REPLACED = "WEIGHTS_REPLACED"
    WEIGHT_VERSION_NOT_NEWER = "WEIGHT_VERSION_NOT_NEWER"
    WEIGHTS_INCOMPLETE = "WEIGHTS_INCOMPLETE"
    WEIGHTS_UNREADABLE = "WEIGHTS_UNREADABLE"
    WEIGHTS_NOT_FOUND = "WEIGHTS_NOT_FOUND"
    SOURCE_NOT_ALLOWED = "SOURCE_NOT_ALLOWED"
    UPDATES_UNSUPPORTED = "UPDATES_UNSUPPORTED"
    UPDATE_IN_PROGRESS = "UPDATE_IN_PROGRESS"
    UPDATE_ABORTED = "UPDATE_ABORTED"
    UPDATE_NOT_FOUND = "UPDATE_NOT_FOUND"
    UPDATE_APPLYING = "UPDATE_APPLYING"
    CALLS_STILL_RUNNING = "CALLS_STILL_RUNNING"
    DEADLINE_EXCEEDED = "DEADLINE_EXCEEDED"
    INTERNAL_ERROR = "INTERNAL_ERROR"


_CODES = {
    Reason.INVALID_FIELD: Code.INVALID_ARGUMENT,
    Reason.UNKNOWN_FIELD: Code.INVALID_ARGUMENT,
    Reason.MODEL_NOT_FOUND: Code.NOT_FOUND,
    Reason.WEIGHT_VERSION_MISMATCH: Code.FAILED_PRECONDITION,
    Reason.WEIGHTS_DIGEST_MISMATCH: Code.FAILED_PRECONDITION,
    Reason.TOKENIZER_DIGEST_MISMATCH: Code.FAILED_PRECONDITION,
    Reason.NOT_DETERMINISTIC: Code.FAILED_PRECONDITION,
    Reason.TOKENIZER_UNAVAILABLE: Code.FAILED_PRECONDITION,
    Reason.UNSUPPORTED_GENERATION_CONFIG: Code.FAILED_PRECONDITION,
    Reason.NON_FINITE_LOGITS: Code.FAILED_PRECONDITION,
    Reason.QUEUE_FULL: Code.RESOURCE_EXHAUSTED,
    Reason.OUT_OF_MEMORY: Code.RESOURCE_EXHAUSTED,
    Reason.LOADING: Code.UNAVAILABLE,
    Reason.AWAITING_WEIGHTS: Code.UNAVAILABLE,
    Reason.DRAINING: Code.UNAVAILABLE,
    Reason.WORKER_DIED: Code.UNAVAILABLE,
    Reason.CRASH_LOOP: Code.UNAVAILABLE,
    Reason.READER_STALLED: Code.RESOURCE_EXHAUSTED,
    Reason.UNAUTHENTICATED: Code.UNAUTHENTICATED,
    Reason.PERMISSION_DENIED: Code.PERMISSION_DENIED,
    Reason.WEIGHTS_REPLACED: Code.ABORTED,
    Reason.WEIGHT_VERSION_NOT_NEWER: Code.FAILED_PRECONDITION,
    Reason.WEIGHTS_INCOMPLETE: Code.FAILED_PRECONDITION,
    Reason.WEIGHTS_UNREADABLE: Code.FAILED_PRECONDITION,
    Reason.WEIGHTS_NOT_FOUND: Code.NOT_FOUND,
    Reason.SOURCE_NOT_ALLOWED: Code.PERMISSION_DENIED,
    Reason.UPDATES_UNSUPPORTED: Code.FAILED_PRECONDITION,
    Reason.UPDATE_IN_PROGRESS: Code.ABORTED,
    Reason.UPDATE_ABORTED: Code.ABORTED,
    Reason.UPDATE_NOT_FOUND: Code.NOT_FOUND,
    Reason.UPDATE_APPLYING: Code.FAILED_PRECONDITION,
    Reason.CALLS_STILL_RUNNING: Code.ABORTED,
    Reason.DEADLINE_EXCEEDED: Code.DEADLINE_EXCEEDED,
    Reason.INTERNAL_ERROR: Code.INTERNAL,
}


@dataclass(frozen=True, slots=True)
class Violation:
    """What is wrong with one field."""

    field: str
    """Path in the request, such as `groups[3].completions[0].token_ids[17]`."""
    description: str


@dataclass(frozen=True, slots=True)
class Fault:
    """Why a call or an item ended without its answer."""

    reason: Reason
    message: str
    violations: tuple[Violation, ...] = ()
    retry_after: float | None = None
    """Seconds after which a retry makes sense; None = unknown or never."""

    @property
    def code(self) -> Code:
        """The status code that goes with the reason."""
        return _CODES[self.reason]


class ServiceError(Exception):
    """A fault on its way to the caller."""

    def __init__(self, fault: Fault) -> None:
        super().__init__(fault.message)
        self.fault = fault


class ConfigurationError(Exception):
    """The server cannot be started as it was told to; the message says what to change."""


def invalid(field: str, description: str) -> ServiceError:
    """An INVALID_ARGUMENT that names one field."""
    violation = Violation(field, description)
    return ServiceError(Fault(Reason.INVALID_FIELD, f"{field}: {description}", (violation,)))


def queue_full(message: str, seconds: float) -> Fault:
    """A refusal for want of room.

    Args:
        message: what there is too much of.
        seconds: until there should be room; the caller is told them within bounds.
    """
    retry_after = min(max(seconds, _MIN_RETRY), _MAX_RETRY)
    return Fault(Reason.QUEUE_FULL, message, retry_after=retry_after)


def deadline_passed() -> Fault:
    """The end of a call that was begun in vain."""
    message = "the deadline passed before the call was finished"
    return Fault(Reason.DEADLINE_EXCEEDED, message)


def required_weights_replaced() -> Fault:
    """The end of a call that takes answers of none but weights that are gone."""
    message = "the weights that the call insists on were replaced"
    return Fault(Reason.WEIGHT_VERSION_MISMATCH, message)
