"""Errors: the right class, the fields at fault, and nothing lost on the way."""

import pickle
import socket
import threading
import time
from concurrent import futures
from contextlib import suppress

import grpc
import pytest

from scoring_client import (
    AbortedError,
    AccessDeniedError,
    AdminClient,
    CancelledCallError,
    DeadlineError,
    FieldViolation,
    InvalidRequestError,
    ItemError,
    MessageTooLargeError,
    ModelNotFoundError,
    OverloadedError,
    PreconditionFailedError,
    RequestContext,
    ScoringError,
    ServerError,
    UnavailableError,
    replica_targets,
)
from scoring_client.connection.unreachable import explained
from scoring_client.errors import combine_item_errors
from tests.client.toy_server import Fault, ToyServer
from tests.client.truth import assert_sample, assert_scores

ONE = [([1, 2], [[3, 4]])]


@pytest.mark.parametrize(
    ("code", "error", "builtin"),
    [
        ("INVALID_ARGUMENT", InvalidRequestError, ValueError),
        ("OUT_OF_RANGE", InvalidRequestError, ValueError),
        ("NOT_FOUND", ModelNotFoundError, LookupError),
        ("FAILED_PRECONDITION", PreconditionFailedError, Exception),
        ("UNAUTHENTICATED", AccessDeniedError, PermissionError),
        ("PERMISSION_DENIED", AccessDeniedError, PermissionError),
        ("RESOURCE_EXHAUSTED", OverloadedError, Exception),
        ("UNAVAILABLE", UnavailableError, ConnectionError),
        ("DEADLINE_EXCEEDED", DeadlineError, TimeoutError),
        ("CANCELLED", CancelledCallError, Exception),
        ("INTERNAL", ServerError, Exception),
        ("UNKNOWN", ServerError, Exception),
        ("UNIMPLEMENTED", ServerError, Exception),
        ("DATA_LOSS", ServerError, Exception),
        ("ABORTED", AbortedError, Exception),
    ],
)
@pytest.mark.parametrize("method", ["score", "sample"])
def test_every_status_has_its_class(ask, method, code, error, builtin):
    fault = Fault(grpc.StatusCode[code], "so it is", "SOME_REASON", field="groups[0].prompt")
    arguments = {"max_tokens": 1} if method == "sample" else {}
    content = [[1]] if method == "sample" else ONE
    with ToyServer(faults=[fault]) as server, pytest.raises(error) as raised:
        ask(server.target, method, content, client={"max_attempts": 1}, **arguments)
    assert type(raised.value) is error
    assert isinstance(raised.value, ScoringError)
    assert isinstance(raised.value, builtin)
    assert raised.value.code is grpc.StatusCode[code]
    assert raised.value.reason == "SOME_REASON"
    assert raised.value.message.startswith("so it is")
    assert raised.value.violations == (FieldViolation("groups[0].prompt", "is wrong"),)
    assert raised.value.request_id == server.requests[0].context.request_id
    assert "groups[0].prompt: is wrong" in str(raised.value)


def test_errors_of_short_calls(ask):
    fault = Fault(grpc.StatusCode.FAILED_PRECONDITION, "not so", "NOT_DETERMINISTIC")
    with ToyServer(unary_faults=[fault, fault]) as server:
        with pytest.raises(PreconditionFailedError) as raised:
            ask(server.target, "model_info")
        assert raised.value.reason == "NOT_DETERMINISTIC"
        with pytest.raises(PreconditionFailedError, match="not so"):
            ask(server.target, "list_models")


def test_unknown_models_are_named_with_those_there_are(ask):
    with ToyServer() as server:
        for method, arguments in (("score", [ONE]), ("model_info", [])):
            with pytest.raises(ModelNotFoundError, match="there is: toy") as raised:
                ask(server.target, method, *arguments, client={"model": "gpt-9"})
            assert raised.value.reason == "MODEL_NOT_FOUND"
        with pytest.raises(ModelNotFoundError):
            ask(server.target, "score", ONE, model="gpt-9")


STATUS_OF_CLASS = {
    "InvalidRequestError": "INVALID_ARGUMENT",
    "ModelNotFoundError": "NOT_FOUND",
    "NotFoundError": "NOT_FOUND",
    "PreconditionFailedError": "FAILED_PRECONDITION",
    "OverloadedError": "RESOURCE_EXHAUSTED",
    "MessageTooLargeError": "RESOURCE_EXHAUSTED",
    "UnavailableError": "UNAVAILABLE",
    "NoTlsError": "UNAVAILABLE",
    "AbortedError": "ABORTED",
    "UpdateInProgressError": "ABORTED",
    "DeadlineError": "DEADLINE_EXCEEDED",
    "CancelledCallError": "CANCELLED",
    "ClosedClientError": "CANCELLED",
}
NO_STATUS = {
    *("ScoringError", "ProtocolError", "MixedWeightsError", "ResultChangedError", "ReplicaError"),
    *("AccessDeniedError", "ServerError"),  # of several, and never found on this side
}


def classes(kind):
    below = (classes(child) for child in kind.__subclasses__())
    return {kind.__name__: kind} | {n: k for found in below for n, k in found.items()}


def test_a_fault_found_on_this_side_has_the_status_of_its_class():
    """One that a call would end with; whoever logs `error.code` need not ask who found it."""
    found = {name: kind("x").code for name, kind in classes(ScoringError).items()}
    assert {name for name, code in found.items() if code is None} == NO_STATUS
    assert {name: code.name for name, code in found.items() if code} == STATUS_OF_CLASS
    with pytest.raises(InvalidRequestError, match="has no port") as raised:
        replica_targets("host")
    assert raised.value.code is grpc.StatusCode.INVALID_ARGUMENT
    assert DeadlineError("x", code=grpc.StatusCode.UNKNOWN).code is grpc.StatusCode.UNKNOWN


def test_nobody_listens(ask):
    begin = time.monotonic()
    with pytest.raises(UnavailableError, match="1 of 1 items unfinished") as raised:
        ask("127.0.0.1:1", "score", ONE, client={"max_attempts": 2})
    assert raised.value.code is grpc.StatusCode.UNAVAILABLE
    assert "nobody listens at 127.0.0.1:1" in str(raised.value)
    assert time.monotonic() - begin < 5
    with pytest.raises(ConnectionError):
        ask(
            "127.0.0.1:1",
            "model_info",
            timeout=5,
            client={"channel_options": [("grpc.enable_retries", 0)]},
        )


def test_no_grpc_server_listens(ask):
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]

        def answer():
            with suppress(OSError):  # the listener is closed
                while True:
                    connection, _ = listener.accept()
                    with connection:
                        connection.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")

        threading.Thread(target=answer, daemon=True).start()
        with pytest.raises(UnavailableError, match=rf"answers at 127.0.0.1:{port} is no gRPC"):
            ask(f"127.0.0.1:{port}", "score", ONE, client={"max_attempts": 1}, timeout=10)


def test_words_about_a_connection():
    of_dns = "errors resolving a.b:1: [field:hostname lookup error: Domain name not found]"
    assert explained(of_dns) == f"there is no host of that name [{of_dns}]"
    refused = "last error: UNKNOWN: ipv6:%5B::1%5D:443: Failed to connect: Connection refused"
    assert explained(refused).startswith("nobody listens at [::1]:443: ")
    # At 127.0.0.1 there may be a server that wants TLS: the default target is localhost.
    assert "If so, ask 127.0.0.1: " in explained(refused)
    assert "127.0.0.1" not in explained(refused.replace("%5B::1%5D", "%5Bfd00::1%5D"))
    # A call that broke off: a server that ended, not one that wants something.
    assert explained("Socket closed") == "Socket closed"


def test_something_else_listens(ask):
    server = grpc.server(futures.ThreadPoolExecutor(1))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        for method, arguments in (("score", [ONE]), ("model_info", []), ("tokenize", [["a"]])):
            with pytest.raises(ServerError, match="no scoring server of this contract") as raised:
                ask(f"127.0.0.1:{port}", method, *arguments)
            assert raised.value.code is grpc.StatusCode.UNIMPLEMENTED
            assert "[Method not found!]" in str(raised.value)
        nobody = pytest.raises(ServerError, match="lets nobody change its weights")
        with AdminClient(f"127.0.0.1:{port}") as admin, nobody as raised:
            admin.get_weights()
        assert "no scoring server" not in str(raised.value)
    finally:
        server.stop(0)


# Too large


def test_a_request_that_is_too_large_is_explained_and_not_sent_again(ask):
    with ToyServer(max_request_bytes=100_000) as server:
        with pytest.raises(MessageTooLargeError) as raised:
            ask(server.target, "score", [([200] * 100_000, [[1]])])
        assert server.requests == []
    message = str(raised.value)
    assert "refused by the server" in message
    assert "0.2 MiB" in message
    assert "0.1 MiB are accepted" in message
    assert "fewer groups" in message
    assert isinstance(raised.value, ValueError)
    assert raised.value.code is grpc.StatusCode.RESOURCE_EXHAUSTED


def test_an_answer_that_is_too_large_is_told_apart(ask):
    options = {"channel_options": [("grpc.max_receive_message_length", 300)]}
    with ToyServer(max_slice=500) as server, pytest.raises(MessageTooLargeError) as raised:
        ask(server.target, "score", [([1], [[2] * 100])], client=options)
    assert "message of the answer" in str(raised.value)


# Items


BAD_AND_GOOD = [([1, 2], [[3], [4, 999], [5, 6]]), ([], [[7], [8]]), ([9], [[], [1]])]


def test_items_that_failed_are_raised_together(ask):
    with ToyServer() as server, pytest.raises(InvalidRequestError) as raised:
        ask(server.target, "score", BAD_AND_GOOD)
    error = raised.value
    assert {item.path for item in error.item_errors} == {
        "groups[0].completions[1]",
        "groups[1].completions[0]",
        "groups[1].completions[1]",
        "groups[2].completions[0]",
    }
    assert {violation.field for violation in error.violations} == {
        "groups[0].completions[1].token_ids[1]",
        "groups[1].prompt",
        "groups[2].completions[0]",
    }
    assert str(error).startswith("4 of 7 items failed: ")
    assert str(error).count("groups[1].prompt: no token") == 1
    assert "completions[0]: groups[1]" not in str(error), "one path is enough"
    assert error.code is grpc.StatusCode.INVALID_ARGUMENT
    assert error.reason == "INVALID_FIELD"


def test_items_that_failed_can_be_returned_beside_the_others(ask):
    with ToyServer(version=0) as server:
        results = ask(server.target, "score", BAD_AND_GOOD, on_error="return")
    failed = [
        (scores.group_index, scores.completion_index)
        for scores in results.completions()
        if scores.error is not None
    ]
    assert failed == [(0, 1), (1, 0), (1, 1), (2, 0)]
    assert results[0][1].error.violations[0].description == "999 ≥ vocabulary 258"
    assert len(results[0][1].logprobs) == 0
    assert {(s.weight_version, s.error is None) for s in results.completions()} == {
        (0, True),
        (None, False),
    }
    assert_scores(results[0][0], [1, 2], [3])
    assert_scores(results[0][2], [1, 2], [5, 6])
    assert_scores(results[2][1], [9], [1])


def test_iterators_raise_for_failed_items_at_the_end(ask):
    received = []
    with ToyServer() as server, pytest.raises(InvalidRequestError, match="4 of 7 items"):
        ask.into(received, server.target, "score_iter", BAD_AND_GOOD)
    good = sorted((part.group_index, part.completion_index) for part in received)
    assert good == [(0, 0), (0, 2), (2, 1)]


def test_failed_prompts(ask):
    prompts = [[1], [999], [2]]
    with ToyServer() as server:
        with pytest.raises(InvalidRequestError, match=r"2 of 6 items failed: prompts\[1\]"):
            ask(server.target, "sample", prompts, n=2, max_tokens=3)
        results = ask(server.target, "sample", prompts, n=2, max_tokens=3, on_error="return")
    assert [sample.error is None for sample in results.samples()] == [True] * 2 + [False] * 2 + [
        True
    ] * 2
    assert results[1][0].error.violations[0].field == "prompts[1].token_ids[0]"
    assert_sample(results[2][1], [2], 3)


def test_topk_that_failed_has_no_rows(ask):
    with ToyServer() as server:
        results = ask(server.target, "topk_logprobs", BAD_AND_GOOD, 4, on_error="return")
    assert results[0][1].top_logprobs.shape == (0, 4)
    assert isinstance(results[0][1].error, InvalidRequestError)


# The objects themselves


@pytest.mark.parametrize(
    "error_class",
    [
        ScoringError,
        InvalidRequestError,
        ModelNotFoundError,
        UnavailableError,
        DeadlineError,
        AccessDeniedError,
        OverloadedError,
    ],
)
def test_errors_travel_between_processes(error_class):
    error = error_class(
        "what happened",
        code=grpc.StatusCode.UNAVAILABLE,
        reason="R",
        violations=[FieldViolation("a.b", "wrong")],
        request_id="id",
        retry_delay=1.5,
        metadata={"k": "v"},
        item_errors=[ItemError("groups[0]", InvalidRequestError("inner"))],
    )
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is error_class
    assert str(again) == str(error) == "what happened; a.b: wrong"
    for name in (
        "message",
        "code",
        "reason",
        "violations",
        "request_id",
        "retry_delay",
        "metadata",
    ):
        assert getattr(again, name) == getattr(error, name)
    assert again.item_errors[0].path == "groups[0]"
    assert str(again.item_errors[0].error) == "inner"


def test_many_failed_items_make_one_short_message():
    failures = [
        ItemError(f"groups[{i}].completions[0]", InvalidRequestError(f"reason {i}"))
        for i in range(40)
    ]
    error = combine_item_errors(failures, 50)
    assert len(error.item_errors) == 40
    assert str(error).startswith("40 of 50 items failed: groups[0].completions[0]: reason 0; ")
    assert str(error).endswith("and 35 more")


def test_a_given_request_id_is_kept(ask):
    context = RequestContext(request_id="mine", tags={"run": "7"}, priority=-3, cache_salt="s")
    fault = Fault(grpc.StatusCode.INTERNAL, "oops", "INTERNAL_ERROR")
    with ToyServer(faults=[fault]) as server, pytest.raises(ServerError) as raised:
        ask(server.target, "score", ONE, context=context)
    assert raised.value.request_id == "mine"
    sent = server.requests[0].context
    assert (sent.request_id, dict(sent.tags), sent.priority, sent.cache_salt) == (
        "mine",
        {"run": "7"},
        -3,
        "s",
    )
