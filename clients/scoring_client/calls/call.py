"""What every streaming call carries beside its content."""

from scoring_client.calls.requests import context_message, expect_message
from scoring_client.calls.state import JobSettings
from scoring_client.connection.retry import time_limit
from scoring_client.proto import sample_pb2, score_pb2, tensor_pb2, topk_pb2
from scoring_client.values.inputs import Expect, RequestContext
from scoring_client.values.messages import set_fields
from scoring_client.values.options import CallOptions


def call_defaults(
    model: str, timeout: float | None, expect: Expect | None, context: RequestContext | None
) -> CallOptions:
    """Return what a client's calls take where they say nothing of their own.

    Raises:
        InvalidRequestError: a condition or context of the wrong type, or beyond its field's range.
    """
    expect_message(expect)
    context_message(context)
    return {"model": model, "timeout": timeout, "expect": expect, "context": context}


def fill_call(
    template: score_pb2.ScoreRequest | topk_pb2.TopKLogprobsRequest | sample_pb2.SampleRequest,
    options: CallOptions,
) -> None:
    """Set model, encoding, context and expectations.

    Raises:
        InvalidRequestError: a value of the wrong type, or beyond the field's range.
    """
    set_fields(template, "", model=options.get("model"))
    template.encoding = tensor_pb2.ENCODING_BYTES
    template.context.CopyFrom(context_message(options.get("context")))
    if (expect := expect_message(options.get("expect"))) is not None:
        template.expect.CopyFrom(expect)


def job_settings(options: CallOptions) -> JobSettings:
    """Return what the caller wants of the call beside its content."""
    return JobSettings(
        timeout=time_limit(options.get("timeout")),
        on_error=options.get("on_error", "raise"),
        on_progress=options.get("on_progress"),
    )
