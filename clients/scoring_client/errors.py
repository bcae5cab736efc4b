"""The one exception tree of this package."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import grpc


@dataclass(frozen=True, slots=True)
class FieldViolation:
    """A field of the request and what is wrong with it."""

    field: str
    """Path of the field, such as ``groups[3].completions[0].token_ids[17]``."""
    description: str
    """What is wrong, such as ``50000 ≥ vocabulary 49152``."""

    def __str__(self) -> str:
        return f"{self.field}: {self.description}"


class ScoringError(Exception):
    """Base of everything that this package raises about a call."""

    default_code: ClassVar[grpc.StatusCode | None] = None
    """``code`` of an error of this class that was found on this side."""

    message: str
    """What happened, in one sentence."""
    code: grpc.StatusCode | None
    """The gRPC status with which the call ended. Of a fault that was found on this side, the one
    that a server would end such a call with; None where there is none (``ProtocolError``,
    ``MixedWeightsError``, ``ResultChangedError``, ``ReplicaError``, a bare ``ScoringError``)."""
    reason: str
    """The server's reason, such as ``QUEUE_FULL`` (``service.proto`` lists them), or ``""``. Of a
    field that was found wrong on this side ``INVALID_FIELD``."""
    violations: tuple[FieldViolation, ...]
    """The fields at fault, in the indices of the caller's own request."""
    request_id: str
    """Id of the request, as the server's logs have it; or ``""``."""
    retry_delay: float | None
    """Seconds after which the server invites another try; None when it does not."""
    metadata: dict[str, str]
    """What else the server says of the reason."""
    item_errors: tuple["ItemError", ...]
    """Every item that failed, when the call itself went well."""

    def __init__(
        self,
        message: str,
        *,
        code: grpc.StatusCode | None = None,
        reason: str = "",
        violations: Iterable[FieldViolation] = (),
        request_id: str = "",
        retry_delay: float | None = None,
        metadata: Mapping[str, str] | None = None,
        item_errors: Iterable["ItemError"] = (),
    ) -> None:
        # Only the message is positional: pickle calls the class with `args` and restores the rest.
        super().__init__(message)
        self.message = message
        self.code = self.default_code if code is None else code
        self.reason = reason
        self.violations = tuple(violations)
        self.request_id = request_id
        self.retry_delay = retry_delay
        self.metadata = dict(metadata or {})
        self.item_errors = tuple(item_errors)

    def __str__(self) -> str:
        unsaid = [str(item) for item in self.violations if item.description not in self.message]
        return "; ".join([self.message, *unsaid])

    @property
    def retryable(self) -> bool:
        """Whether the same request may succeed when it is sent again."""
        return False


class InvalidRequestError(ScoringError, ValueError):
    """The request is wrong (INVALID_ARGUMENT), found by the server or before sending."""

    default_code = grpc.StatusCode.INVALID_ARGUMENT


class ModelNotFoundError(ScoringError, LookupError):
    """No such model (NOT_FOUND); the message lists the models served."""

    default_code = grpc.StatusCode.NOT_FOUND


class PreconditionFailedError(ScoringError):
    """The server's state does not allow it (FAILED_PRECONDITION), such as an unmet expectation."""

    default_code = grpc.StatusCode.FAILED_PRECONDITION


class AccessDeniedError(ScoringError, PermissionError):
    """The token is missing, wrong or not enough (UNAUTHENTICATED, PERMISSION_DENIED)."""


class OverloadedError(ScoringError):
    """The server has no room (RESOURCE_EXHAUSTED). Retried only when the server names a delay."""

    default_code = grpc.StatusCode.RESOURCE_EXHAUSTED

    @property
    def retryable(self) -> bool:
        """True when the server invited another try."""
        return self.retry_delay is not None


class MessageTooLargeError(ScoringError, ValueError):
    """A message is larger than one side accepts. Sending it again never helps."""

    default_code = grpc.StatusCode.RESOURCE_EXHAUSTED


class UnavailableError(ScoringError, ConnectionError):
    """No server answered, or it is loading, draining or lost its worker (UNAVAILABLE).

    Also a stream that something on the way ended without a status; its ``code`` is then gRPC's own
    INTERNAL or UNKNOWN.
    """

    default_code = grpc.StatusCode.UNAVAILABLE

    @property
    def retryable(self) -> bool:
        """True: the contract says to try again."""
        return True


class NoTlsError(UnavailableError):
    """The channel speaks TLS and the server does not. Sending it again never helps."""

    @property
    def retryable(self) -> bool:
        """False: who began in another way goes on so."""
        return False


class ResultChangedError(ScoringError):
    """A broken stream was resumed, but slices already handed out no longer hold.

    Happens in ``*_slices`` alone, when the weights changed between the attempts.
    """


class MixedWeightsError(ScoringError):
    """Servers that share a call have different weights under one version number.

    Weights that were changed under a new version are no fault: every item says its version.
    """


class AbortedError(ScoringError):
    """Something else took its place (ABORTED): its ``reason`` tells what.

    ``UPDATE_ABORTED``: an update of the weights was given up. ``WEIGHTS_REPLACED``: a sample met
    new weights whose update aborts samples. ``CALLS_STILL_RUNNING``: an update in place waited too
    long for calls under way, or another admin's ``Resume`` came before a ``Drain`` had ended.
    """

    default_code = grpc.StatusCode.ABORTED


class UpdateInProgressError(AbortedError):
    """Another update of the weights is under way; one at a time."""


class NotFoundError(ScoringError, LookupError):
    """No such weights, or no such update (NOT_FOUND)."""

    default_code = grpc.StatusCode.NOT_FOUND


class DeadlineError(ScoringError, TimeoutError):
    """The call's timeout passed (DEADLINE_EXCEEDED)."""

    default_code = grpc.StatusCode.DEADLINE_EXCEEDED


class CancelledCallError(ScoringError):
    """The call was cancelled on the way or by the server (CANCELLED)."""

    default_code = grpc.StatusCode.CANCELLED


class ClosedClientError(CancelledCallError, ValueError):
    """The client was closed, before the call or while it ran."""


class ServerError(ScoringError):
    """A bug of the server, or not a server of this contract (INTERNAL, UNIMPLEMENTED, …)."""


class ProtocolError(ScoringError):
    """The answer breaks the contract: a gap, a missing end, a wrong shape."""


@dataclass(frozen=True, slots=True)
class ItemError:
    """An item that failed while the call went on."""

    path: str
    """The item, such as ``groups[3].completions[0]`` or ``prompts[1]``, sample 4."""
    error: ScoringError
    """Why."""


_BY_CODE: dict[grpc.StatusCode, type[ScoringError]] = {
    grpc.StatusCode.INVALID_ARGUMENT: InvalidRequestError,
    grpc.StatusCode.OUT_OF_RANGE: InvalidRequestError,
    grpc.StatusCode.NOT_FOUND: ModelNotFoundError,
    grpc.StatusCode.FAILED_PRECONDITION: PreconditionFailedError,
    grpc.StatusCode.UNAUTHENTICATED: AccessDeniedError,
    grpc.StatusCode.PERMISSION_DENIED: AccessDeniedError,
    grpc.StatusCode.RESOURCE_EXHAUSTED: OverloadedError,
    grpc.StatusCode.UNAVAILABLE: UnavailableError,
    grpc.StatusCode.DEADLINE_EXCEEDED: DeadlineError,
    grpc.StatusCode.CANCELLED: CancelledCallError,
    grpc.StatusCode.ABORTED: AbortedError,
}

_BY_REASON: dict[str, type[ScoringError]] = {
    "UPDATE_IN_PROGRESS": UpdateInProgressError,
    "UPDATE_NOT_FOUND": NotFoundError,
    "WEIGHTS_NOT_FOUND": NotFoundError,
}


def error_class(code: grpc.StatusCode, reason: str = "") -> type[ScoringError]:
    """Return the class that stands for a gRPC status, or for a reason that says more."""
    return _BY_REASON.get(reason) or _BY_CODE.get(code, ServerError)


def invalid(field: str, description: str) -> InvalidRequestError:
    """Return the error of a request that is wrong before it is sent."""
    violation = FieldViolation(field, description)
    return InvalidRequestError(str(violation), reason="INVALID_FIELD", violations=[violation])


def reworded(
    error: ScoringError, message: str, violations: Iterable[FieldViolation] | None = None
) -> ScoringError:
    """Return ``error`` with another message, and other violations when they are given."""
    return type(error)(
        message,
        code=error.code,
        reason=error.reason,
        violations=error.violations if violations is None else violations,
        request_id=error.request_id,
        retry_delay=error.retry_delay,
        metadata=error.metadata,
        item_errors=error.item_errors,
    )


def combine_item_errors(failures: Sequence[ItemError], items_total: int) -> ScoringError:
    """Return one error for the items that failed, of the class of the first.

    All of them stand in its ``item_errors``, and all their violations in its ``violations``.
    """
    first = failures[0].error
    # A group or prompt that failed as a whole has one error for all its items.
    by_text = {str(failure.error): failure for failure in reversed(failures)}
    # What violates the contract names its own path, which is that of a whole group at times.
    distinct = [
        text if failure.error.violations or failure.path in text else f"{failure.path}: {text}"
        for text, failure in reversed(by_text.items())
    ]
    shown = distinct[:5]
    if len(distinct) > len(shown):
        shown.append(f"and {len(distinct) - len(shown)} more")
    return type(first)(
        f"{len(failures)} of {items_total} items failed: " + "; ".join(shown),
        code=first.code,
        reason=first.reason,
        violations=dict.fromkeys(item for failure in failures for item in failure.error.violations),
        request_id=first.request_id,
        metadata=first.metadata,
        item_errors=failures,
    )
