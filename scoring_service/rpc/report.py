"""What is told of a call that was answered."""

from __future__ import annotations

import time
from typing import Any

import structlog

from scoring_service.rpc.answers.answer import Answer
from scoring_service.rpc.guard import rpc_name
from scoring_service.rpc.handling.caller import Caller
from scoring_service.telemetry.metrics import Metrics

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
    usage = answer.usage
    if answer.started_ns is not None and answer.finished_ns is not None:
        caller.span.child("queue", admitted_ns, answer.started_ns)
        caller.span.child("steps", answer.started_ns, answer.finished_ns)
        caller.span.child("stream", answer.started_ns, time.time_ns())
    tags = request.context.tags.items()
    caller.span.note(
        {
            "scoring.tokens": tokens,
            "scoring.computed_tokens": usage.computed_tokens,
            "scoring.sampled_tokens": usage.sampled_tokens,
            "scoring.items_failed": answer.items - answer.ok,
            **{f"scoring.tag.{key}": value for key, value in tags},
        }
    )
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
