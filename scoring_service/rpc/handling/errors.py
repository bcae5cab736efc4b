"""What an RPC that fails gives: a line of the log, and a status for its caller."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import structlog

from scoring_service.errors import Fault, Reason, ServiceError
from scoring_service.rpc.handling.handlers import Context
from scoring_service.rpc.handling.status import abort, bounded, code_of
from scoring_service.telemetry.call_labels import label_lines

log = structlog.get_logger(__name__)


@asynccontextmanager
async def abort_on_fault(
    context: Context,
    rpc: str,
    request_id: str,
    identity: str,
    failed: Callable[[str], None] = lambda _code: None,
) -> AsyncIterator[dict[str, Any]]:
    """Around the answer of an RPC; gives the labels of its lines, to which more may be added.

    Args:
        context: of the RPC.
        rpc: its name.
        request_id: its own.
        identity: of the caller; empty = unknown.
        failed: is told the name of the status that it ends with.
    """
    labels: dict[str, Any] = {"request_id": bounded(request_id), "rpc": rpc}
    if identity:
        labels["identity"] = identity
    # An RPC is a task with a context of its own: these labels end with it.
    label_lines(labels)
    began = time.monotonic()
    try:
        yield labels
    except ServiceError as error:
        fault = error.fault
        log.info("refused", reason=fault.reason, message=bounded(fault.message), **labels)
        failed(fault.code)
        await abort(context, fault, request_id)
    except (asyncio.CancelledError, GeneratorExit):
        # The caller hung up, or its deadline passed. Where it did so between two messages, this is
        # run by another task, which does not know the labels.
        code = code_of(context)
        log.info("cancelled", code=code, seconds=round(time.monotonic() - began, 3), **labels)
        failed(code)
        raise
    except Exception:
        log.exception("bug", **labels)
        failed("INTERNAL")
        await abort(context, _BUG, request_id)


_BUG = Fault(Reason.INTERNAL_ERROR, "a bug in the server; its log has this request id")
