"""What is told of a call that was answered."""

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import Any

import structlog

from scoring_service.pool.streams.stream import CallStream
from scoring_service.rpc.answers.answer import Answer
from scoring_service.rpc.guard import rpc_name
from scoring_service.rpc.handling.caller import Caller
from scoring_service.telemetry.metrics import Metrics
from scoring_service.telemetry.traces import Span
from scoring_service.types import Usage

log = structlog.get_logger(__name__)


def report(
    metrics: Metrics,
    answer: Answer[Any],
    request: Any,
    tokens: int,
    caller: Caller,
    admitted_ns: int,
) -> None:
    """Log, metrics and trace of a call that was answered to its end.

    Args:
        metrics: of the server.
        answer: whose last message was sent.
        request: that it answers.
        tokens: that the queue counted for it.
        caller: whose trace it is a part of.
        admitted_ns: when it was handed to the pool, in nanoseconds since the epoch.
    """
    usage, tags = answer.usage, request.context.tags.items()
    if caller.span.is_recorded:
        if answer.started_ns is not None:
            _note_times(caller.span, answer, admitted_ns)
        _note_cost(caller.span, answer, tokens, usage, tags)
    metrics.answered(rpc_name(request), caller.identity, tags, usage, answer.sent_bytes)
    log.info(
        "answered",
        tokens=tokens,
        items_ok=answer.ok,
        items_failed=answer.items - answer.ok,
        prompt_tokens=usage.prompt_tokens,
        cached_tokens=usage.cached_tokens,
        computed_tokens=usage.computed_tokens,
        sampled_tokens=usage.sampled_tokens,
        reply_bytes=answer.sent_bytes,
        queue_seconds=round(usage.queue_seconds, 6),
        compute_seconds=round(usage.compute_seconds, 6),
    )


def report_cut_short(
    metrics: Metrics,
    answer: Answer[Any],
    request: Any,
    stream: CallStream,
    caller: Caller,
    admitted_ns: int,
) -> None:
    """Metrics and trace of a call that was admitted and then failed, or was cancelled.

    Its line of the log is that of its failure.

    Args:
        metrics: of the server.
        answer: as far as it came.
        request: that it answers.
        stream: its events, which its reader has left.
        caller: whose trace it is a part of.
        admitted_ns: when it was handed to the pool, in nanoseconds since the epoch.
    """
    usage, tags = stream.usage_so_far(), request.context.tags.items()
    if caller.span.is_recorded:
        _note_times(caller.span, answer, admitted_ns)
        _note_cost(caller.span, answer, stream.tokens, usage, tags)
    metrics.cut_short(
        rpc_name(request),
        caller.identity,
        tags,
        usage,
        answer.bytes_so_far,
        begun=stream.queue_seconds is not None,
    )


def _note_times(span: Span, answer: Answer[Any], admitted_ns: int) -> None:
    """What did not end yet ends now."""
    now_ns = time.time_ns()
    span.child("queue", admitted_ns, answer.started_ns or now_ns)
    if answer.started_ns is not None:
        span.child("steps", answer.started_ns, answer.finished_ns or now_ns)
        span.child("stream", answer.started_ns, now_ns)


def _note_cost(
    span: Span, answer: Answer[Any], tokens: int, usage: Usage, tags: Iterable[tuple[str, str]]
) -> None:
    span.note(
        {
            "scoring.tokens": tokens,
            "scoring.computed_tokens": usage.computed_tokens,
            "scoring.sampled_tokens": usage.sampled_tokens,
            "scoring.items_failed": answer.items - answer.ok,
            **{f"scoring.tag.{key}": value for key, value in tags},
        }
    )
