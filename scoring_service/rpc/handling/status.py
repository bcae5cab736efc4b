"""One function from a fault to a gRPC status, whole-call or per item."""

from __future__ import annotations

import uuid
from typing import Any, NoReturn

import grpc
from google.protobuf import any_pb2, duration_pb2
from google.rpc import code_pb2, error_details_pb2, status_pb2

from scoring_service.errors import Fault

DOMAIN = "scoring.v1"
"""`ErrorInfo.domain` of every error."""

SERVER_ID = uuid.uuid4().hex[:16]
"""`ErrorInfo.metadata["server"]` of calls that failed: tells clients whether a second refusal came
from another one of several servers behind a name."""

_DETAILS_KEY = "grpc-status-details-bin"

_NAMES = {code.value[0]: code.name for code in grpc.StatusCode}

_CLOCK_SLACK = 0.1
"""Seconds by which a caller may see its deadline pass before this server does."""

_MAX_TEXT = 300
"""Characters of a text in a status: it travels in headers, which gRPC bounds at 8 KiB, and it may
quote what the caller sent."""


def to_status(fault: Fault, request_id: str = "", server: str = "") -> status_pb2.Status:
    """google.rpc.Status with ErrorInfo, and BadRequest and RetryInfo where they apply."""
    info = error_details_pb2.ErrorInfo(reason=fault.reason.value, domain=DOMAIN)
    for key, value in (("request_id", request_id), ("server", server)):
        if value:
            info.metadata[key] = bounded(value)
    details: list[any_pb2.Any] = [_pack(info)]
    if fault.violations:
        violations = [
            error_details_pb2.BadRequest.FieldViolation(
                field=bounded(v.field), description=bounded(v.description)
            )
            for v in fault.violations
        ]
        details.append(_pack(error_details_pb2.BadRequest(field_violations=violations)))
    if fault.retry_after is not None:
        delay = duration_pb2.Duration()
        delay.FromNanoseconds(int(fault.retry_after * 1e9))
        details.append(_pack(error_details_pb2.RetryInfo(retry_delay=delay)))
    code = code_pb2.Code.Value(fault.code.value)
    return status_pb2.Status(code=code, message=bounded(fault.message), details=details)


async def abort(
    context: grpc.aio.ServicerContext[object, object], fault: Fault, request_id: str = ""
) -> NoReturn:
    """Ends the call with the fault."""
    status = to_status(fault, request_id, server=SERVER_ID)
    code = grpc.StatusCode[fault.code.value]
    await context.abort(code, status.message, ((_DETAILS_KEY, status.SerializeToString()),))
    raise AssertionError("abort() does not return")


def code_of(context: grpc.aio.ServicerContext[Any, Any]) -> str:
    """Name of the status that an RPC ended with which did not end well."""
    # As abort() got it, or its number, whatever the published types say.
    code: Any = context.code()
    if code:
        return str(code.name) if isinstance(code, grpc.StatusCode) else _NAMES[code]
    # gRPC cancels the handler when the caller hangs up, as callers do too when their deadline
    # passes: by their clock, a little before ours.
    left = context.time_remaining()
    return "CANCELLED" if left is None or left > _CLOCK_SLACK else "DEADLINE_EXCEEDED"


def bounded(text: str) -> str:
    """The text, or its beginning where it is too long for a status."""
    return text if len(text) <= _MAX_TEXT else f"{text[:_MAX_TEXT]}…"


def _pack(message: object) -> any_pb2.Any:
    packed = any_pb2.Any()
    packed.Pack(message)  # type: ignore[arg-type]
    return packed
