"""From gRPC statuses, with the details they carry, to this package's exceptions."""

import re
from typing import Any

import grpc
from google.rpc import error_details_pb2, status_pb2

from scoring_client.connection.closed import CLOSED_MEANWHILE
from scoring_client.connection.unreachable import explained, where
from scoring_client.errors import (
    ClosedClientError,
    DeadlineError,
    FieldViolation,
    MessageTooLargeError,
    NoTlsError,
    ScoringError,
    UnavailableError,
    error_class,
    reworded,
)

_DETAILS_KEY = "grpc-status-details-bin"
_CODES: dict[int, grpc.StatusCode] = {code.value[0]: code for code in grpc.StatusCode}
# gRPC's own refusals: "Received message larger than max (104857616 vs. 4194304)", with a prefix
# "CLIENT: " or "SERVER: " in newer versions.
_NO_TLS = re.compile(r"WRONG_VERSION_NUMBER")
_NO_SUCH_METHOD = (
    "what answers there is no scoring server of this contract: the health port, a proxy, or an "
    "older server? grpcurl's `list` shows what it has"
)
# How gRPC says that a stream ended without a status. It was reset: "Stream removed (RST_STREAM
# (Received RST_STREAM with error code 2))", in older versions without what is around, and by way of
# a proxy in Go "stream terminated by RST_STREAM with error code: INTERNAL_ERROR". A message was its
# last frame: "Data frame with END_STREAM flag received". Or its trailers had none.
_NO_STATUS = re.compile(r"RST_STREAM|Stream removed|END_STREAM|No status received")
_CODES_OF_NO_STATUS = (grpc.StatusCode.INTERNAL, grpc.StatusCode.UNKNOWN)
# By itself, or "Stream removed (Channel closed!)" of a call that had just begun.
_CHANNEL_CLOSED = "Channel closed!"
_DEADLINE = "Deadline Exceeded"
_TOO_LARGE = re.compile(r"(Received|Sent) message larger than max(?: \((\d+) vs\.? (\d+)\))?")


def error_from_rpc(
    error: grpc.RpcError,
    *,
    request_id: str,
    request_bytes: int,
    no_such_method: str = _NO_SUCH_METHOD,
) -> ScoringError:
    """Return the exception of this package for a call that gRPC ended.

    Args:
        error: What grpc or grpc.aio raised.
        request_id: Id that the request carried.
        request_bytes: Size of the request, to tell which side refused a message as too large.
        no_such_method: What it means that there is no such method; gRPC says no more than that.
    """
    # grpc raises objects that are RpcError and Call at once; RpcError alone declares nothing.
    call: Any = error
    code: grpc.StatusCode = call.code()
    message: str = call.details() or code.name
    if code is grpc.StatusCode.RESOURCE_EXHAUSTED and (match := _TOO_LARGE.search(message)):
        return _message_too_large(match, message, request_id, request_bytes)
    if code is grpc.StatusCode.UNAVAILABLE and _NO_TLS.search(message):
        return _speaks_no_tls(message, request_id)
    if code is grpc.StatusCode.CANCELLED and _CHANNEL_CLOSED in message:
        return ClosedClientError(CLOSED_MEANWHILE, request_id=request_id)
    status = status_pb2.Status(code=code.value[0], message=message)
    for key, value in call.trailing_metadata() or ():
        if key == _DETAILS_KEY:
            status.MergeFromString(value)
    if code in _CODES_OF_NO_STATUS and not status.details and _NO_STATUS.search(message):
        return _no_status(message, code, request_id)
    if code is grpc.StatusCode.UNAVAILABLE and not status.details:
        message = explained(message)
    if code is grpc.StatusCode.UNIMPLEMENTED and not status.details:
        message = f"{no_such_method} [{message}]"
    # The plain status decides: a proxy may have replaced it and left the details standing.
    status.code = code.value[0]
    status.message = message
    return error_from_status(status, request_id=request_id)


def in_time(error: ScoringError, server: str, limit: float | None) -> ScoringError:
    """Return the error of a call with one answer, saying of gRPC's own deadline whose it was.

    Args:
        error: What ended the call.
        server: Who was asked.
        limit: Seconds that the call had; None = no limit.
    """
    # A server's word has a reason.
    if not isinstance(error, DeadlineError) or error.reason:
        return error
    within = "in time" if limit is None else f"within {limit:g} s"
    said = "" if error.message == _DEADLINE else f" [{error.message}]"
    return reworded(error, f"{server} did not answer {within}{said}")


def error_from_status(status: Any, *, request_id: str) -> ScoringError:
    """Return the exception for a ``google.rpc.Status``, such as that of one item."""
    code = _CODES.get(status.code, grpc.StatusCode.UNKNOWN)
    bad_request = error_details_pb2.BadRequest()
    info = error_details_pb2.ErrorInfo()
    retry = error_details_pb2.RetryInfo()
    request = error_details_pb2.RequestInfo()
    invited = False
    for detail in status.details:
        detail.Unpack(bad_request)
        detail.Unpack(info)
        detail.Unpack(request)
        invited = detail.Unpack(retry) or invited
    return error_class(code, info.reason)(
        status.message or code.name,
        code=code,
        reason=info.reason,
        violations=[
            FieldViolation(item.field, item.description) for item in bad_request.field_violations
        ],
        request_id=request.request_id or request_id,
        retry_delay=retry.retry_delay.ToTimedelta().total_seconds() if invited else None,
        metadata=info.metadata,
    )


def _speaks_no_tls(message: str, request_id: str) -> ScoringError:
    """Return what BoringSSL's lines about a handshake mean."""
    return NoTlsError(
        f"the server{where(message)} speaks no TLS: connect without certificates and tls (on the "
        "command line without --root-certificates and --tls), or check the port",
        request_id=request_id,
    )


def _no_status(message: str, code: grpc.StatusCode, request_id: str) -> UnavailableError:
    """Return what a stream without a status means: the server always gives one, with details."""
    return UnavailableError(
        f"something on the way, such as a proxy, ended the stream [{message}]",
        code=code,
        request_id=request_id,
    )


def _message_too_large(
    match: re.Match[str], message: str, request_id: str, request_bytes: int
) -> MessageTooLargeError:
    verb, size, limit = match.groups()
    refused_here = verb == "Sent" or message.startswith("CLIENT")
    # A received message of another size than the request is the answer.
    answer = verb == "Received" and (
        message.startswith("CLIENT") or (size is not None and int(size) != request_bytes)
    )
    if answer:
        advice = (
            "a message of the answer is larger than this channel receives; the server keeps them "
            "to about 1 MiB, so leave grpc.max_receive_message_length at 4 MiB or more"
        )
    else:
        accepted = f" in a message; {_megabytes(int(limit))} are accepted" if limit else ""
        where = "by this channel's own limit" if refused_here else "by the server"
        advice = (
            f"the request was refused {where}: it takes {_megabytes(request_bytes)}{accepted} "
            "(the server's limit is GetModelInfo's limits.max_request_bytes). Send fewer groups in "
            "a call, or let completions of one prompt share a group so that it travels once"
        )
    return MessageTooLargeError(
        f"{advice} [{message}]",
        request_id=request_id,
    )


def _megabytes(size: int) -> str:
    return f"{size / 2**20:.1f} MiB"
