"""Statuses and the details they carry, as gRPC hands them over."""

import grpc
import pytest
from google.protobuf import any_pb2
from google.rpc import error_details_pb2, status_pb2

from scoring_client import (
    CancelledCallError,
    ClosedClientError,
    DeadlineError,
    MessageTooLargeError,
    OverloadedError,
    ServerError,
    UnavailableError,
)
from scoring_client.connection.status import error_from_rpc, error_from_status


class Ended(grpc.RpcError):
    """A call that ended, with the three methods that gRPC gives its errors."""

    def __init__(self, code, details, metadata=()):
        self.code = lambda: code
        self.details = lambda: details
        self.trailing_metadata = lambda: metadata


def status(code, message, *details):
    packed = []
    for detail in details:
        packed.append(any_pb2.Any())
        packed[-1].Pack(detail)
    return status_pb2.Status(code=code.value[0], message=message, details=packed)


def test_the_plain_status_wins_over_the_details():
    # A proxy replaced the status and let the metadata pass.
    info = error_details_pb2.ErrorInfo(reason="QUEUE_FULL", metadata={"tokens": "5"})
    carried = status(grpc.StatusCode.RESOURCE_EXHAUSTED, "full", info).SerializeToString()
    metadata = (("other", "x"), ("grpc-status-details-bin", carried))
    ended = Ended(grpc.StatusCode.INTERNAL, "bad gateway", metadata)
    error = error_from_rpc(ended, request_id="id", request_bytes=1)
    assert type(error) is ServerError
    assert error.message == "bad gateway"
    assert error.code is grpc.StatusCode.INTERNAL
    assert error.reason == "QUEUE_FULL"
    assert error.metadata == {"tokens": "5"}
    assert error.request_id == "id"


def test_a_status_without_words_or_metadata():
    error = error_from_rpc(
        Ended(grpc.StatusCode.UNKNOWN, None, None), request_id="", request_bytes=1
    )
    assert str(error) == "UNKNOWN"


def test_the_server_s_request_id_wins():
    request = error_details_pb2.RequestInfo(request_id="theirs")
    error = error_from_status(status(grpc.StatusCode.INTERNAL, "x", request), request_id="ours")
    assert error.request_id == "theirs"


def test_a_code_that_grpc_does_not_have():
    error = error_from_status(status_pb2.Status(code=99, message="odd"), request_id="")
    assert error.code is grpc.StatusCode.UNKNOWN
    assert type(error) is ServerError


def test_a_delay_of_zero_is_an_invitation_all_the_same():
    full = status(grpc.StatusCode.RESOURCE_EXHAUSTED, "full", error_details_pb2.RetryInfo())
    error = error_from_status(full, request_id="")
    assert error.retry_delay == 0
    assert error.retryable


def test_details_of_unknown_kinds_are_left_alone():
    detail = error_details_pb2.DebugInfo(detail="x")
    error = error_from_status(status(grpc.StatusCode.INTERNAL, "y", detail), request_id="")
    assert (error.reason, error.violations, error.retry_delay) == ("", (), None)


@pytest.mark.parametrize(
    ("details", "request_bytes", "said"),
    [
        (
            "SERVER: Received message larger than max (2000000 vs. 1000000)",
            2_000_000,
            "by the server",
        ),
        ("Received message larger than max (2000000 vs. 1000000)", 2_000_000, "by the server"),
        ("Received message larger than max (5000000 vs. 4194304)", 9, "of the answer"),
        ("CLIENT: Received message larger than max (5000000 vs. 4194304)", 9, "of the answer"),
        ("CLIENT: Sent message larger than max (5000000 vs. 4194304)", 5_000_000, "own limit"),
        ("Sent message larger than max (5000000 vs. 4194304)", 5_000_000, "own limit"),
        ("Received message larger than max", 5_000_000, "by the server"),
        ("CLIENT: Received message larger than max", 5_000_000, "of the answer"),
    ],
)
def test_which_message_was_too_large(details, request_bytes, said):
    ended = Ended(grpc.StatusCode.RESOURCE_EXHAUSTED, details)
    error = error_from_rpc(ended, request_id="", request_bytes=request_bytes)
    assert type(error) is MessageTooLargeError
    assert said in str(error)
    assert not error.retryable


def test_out_of_memory_is_not_too_large():
    info = error_details_pb2.ErrorInfo(reason="OUT_OF_MEMORY")
    oom = status(grpc.StatusCode.RESOURCE_EXHAUSTED, "no memory", info)
    metadata = (("grpc-status-details-bin", oom.SerializeToString()),)
    ended = Ended(grpc.StatusCode.RESOURCE_EXHAUSTED, "no memory", metadata)
    error = error_from_rpc(ended, request_id="", request_bytes=1)
    assert type(error) is OverloadedError
    assert error.reason == "OUT_OF_MEMORY"
    assert not error.retryable


RESET = "Stream removed (RST_STREAM (Received RST_STREAM with error code 2))"


@pytest.mark.parametrize(
    ("code", "details"),
    [
        (grpc.StatusCode.INTERNAL, RESET),
        (grpc.StatusCode.INTERNAL, "Received RST_STREAM with error code 0"),
        (grpc.StatusCode.INTERNAL, "stream terminated by RST_STREAM with error code: NO_ERROR"),
        (grpc.StatusCode.UNKNOWN, "Stream removed"),
        (grpc.StatusCode.UNKNOWN, "Data frame with END_STREAM flag received"),
        (grpc.StatusCode.UNKNOWN, "No status received"),
    ],
)
def test_a_stream_without_a_status_is_worth_another_attempt(code, details):
    """In the words of several versions of gRPC."""
    error = error_from_rpc(Ended(code, details), request_id="id", request_bytes=1)
    assert type(error) is UnavailableError
    assert error.retryable
    assert details in error.message
    assert (error.code, error.request_id) == (code, "id")


def test_the_servers_own_words_about_streams_are_its_own():
    info = error_details_pb2.ErrorInfo(reason="INTERNAL_ERROR")
    carried = status(grpc.StatusCode.INTERNAL, RESET, info).SerializeToString()
    ended = Ended(grpc.StatusCode.INTERNAL, RESET, (("grpc-status-details-bin", carried),))
    error = error_from_rpc(ended, request_id="", request_bytes=1)
    assert type(error) is ServerError
    assert not error.retryable


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        (grpc.StatusCode.CANCELLED, CancelledCallError),
        (grpc.StatusCode.DEADLINE_EXCEEDED, DeadlineError),
        (grpc.StatusCode.RESOURCE_EXHAUSTED, OverloadedError),
    ],
)
def test_a_reset_that_says_more_keeps_its_meaning(code, kind):
    error = error_from_rpc(Ended(code, RESET), request_id="", request_bytes=1)
    assert type(error) is kind
    assert not error.retryable


@pytest.mark.parametrize("said", ["Channel closed!", "Stream removed (Channel closed!)"])
def test_what_grpc_says_of_a_call_whose_client_is_closed(said):
    ended = Ended(grpc.StatusCode.CANCELLED, said)
    error = error_from_rpc(ended, request_id="id", request_bytes=1)
    assert type(error) is ClosedClientError
    assert error.request_id == "id"
