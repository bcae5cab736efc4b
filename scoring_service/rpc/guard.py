"""What RPCs share: request id, trace, the faults of a request as a whole, faults to statuses."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing
from typing import Any, TypeVar

from google.protobuf.message import Message

from scoring_client.proto import context_pb2
from scoring_service.errors import Fault, Reason, ServiceError
from scoring_service.pool.workers.readiness import PoolState
from scoring_service.rpc.handling.caller import Caller, deadline_of, peer_host
from scoring_service.rpc.handling.errors import abort_on_fault
from scoring_service.rpc.handling.handlers import Context
from scoring_service.rpc.handling.status import bounded
from scoring_service.rpc.interceptors.authentication import identity_of
from scoring_service.rpc.models import Models, ServedModel
from scoring_service.rpc.parsing.context import check_context, check_expectations, new_request_id
from scoring_service.rpc.parsing.cost_bound import token_lower_bound
from scoring_service.rpc.parsing.model_view import ModelView
from scoring_service.rpc.parsing.unknown_fields import refuse_unknown_fields
from scoring_service.telemetry.traces import Traces

_LAST_WORD_SECONDS = 0.25
"""Before its deadline a call that waits is told what it waited for."""

Response = TypeVar("Response", bound=Message)
Handler = Callable[[Any, ServedModel, ModelView, Caller], AsyncGenerator[Response, None]]
"""Answers a request that has no fault as a whole."""


class Guard:
    """Stands before the handlers of ScoringService.

    Args:
        models: what is served.
        progress_seconds: how often a call that waits gives a sign of life.
        traces: what calls are parts of.
    """

    def __init__(self, models: Models, progress_seconds: float, traces: Traces) -> None:
        self._models = models
        self._progress_seconds = progress_seconds
        self._traces = traces

    async def stream(
        self,
        request: Any,
        context: Context,
        make: Callable[..., Response],
        handler: Handler[Response],
    ) -> AsyncGenerator[Response, None]:
        """The answer of an RPC that streams, closed by whoever leaves it early.

        Args:
            request: of the call.
            context: of it.
            make: the class of the RPC's messages.
            handler: answers a request that has no fault as a whole.
        """
        request_id = request.context.request_id or new_request_id()
        identity = identity_of(context)
        rpc = rpc_name(request)
        metadata = context.invocation_metadata()
        with self._traces.call(f"scoring.v1.ScoringService/{rpc}", metadata) as span:
            if span.is_recorded:
                span.note({"scoring.request_id": bounded(request_id), "scoring.identity": identity})
            caller = Caller(
                request_id, identity, peer_host(context.peer()), deadline_of(context), span
            )
            async with (
                abort_on_fault(context, rpc, request_id, identity, span.failed) as labels,
                aclosing(self._checked(request, caller, make, handler, labels)) as responses,
            ):
                async for response in responses:
                    yield response

    async def unary(
        self,
        request: Any,
        context: Context,
        handler: Callable[[Any], Response | Awaitable[Response]],
    ) -> Response:
        """The answer of an RPC that gives one message."""
        async with abort_on_fault(
            context, rpc_name(request), new_request_id(), identity_of(context)
        ):
            refuse_unknown_fields(request)
            answer = handler(request)
            return await answer if isinstance(answer, Awaitable) else answer

    async def _checked(
        self,
        request: Any,
        caller: Caller,
        make: Callable[..., Response],
        handler: Handler[Response],
        labels: dict[str, Any],
    ) -> AsyncGenerator[Response, None]:
        """Faults of the request as a whole, cheapest first; then its answer.

        Args:
            request: of the call.
            caller: whose it is.
            make: see `stream`.
            handler: of the RPC.
            labels: of the call's lines in the log; its tags are added.
        """
        served = self._models.find(request.model)
        waits = request.expect.HasField("min_weight_version")
        if not waits or _answering_version(served) is not None:
            _check_room(served, request, caller.client)
        await asyncio.to_thread(refuse_unknown_fields, request)
        check_context(request.context, served.request_limits.max_priority)
        if request.context.tags:
            labels["tags"] = dict(request.context.tags)
        if waits:
            version = request.expect.min_weight_version
            waiting = self._wait_for_version(served, version, caller.deadline)
            async with aclosing(waiting) as signs:
                async for sign in signs:
                    yield make(progress=sign)
        view = served.view
        check_expectations(request.expect, view)
        async with aclosing(handler(request, served, view, caller)) as responses:
            async for response in responses:
                yield response

    async def _wait_for_version(
        self, served: ServedModel, version: int, deadline: float
    ) -> AsyncGenerator[context_pb2.Progress, None]:
        """Waits until the weights are recent enough, with a sign of life; the deadline ends it.

        Raises:
            ServiceError: they were not when the caller's time was all but over.
        """
        began = time.monotonic()
        # The caller's own clock ends the call too, and would not say what it waited for.
        until = deadline - min(_LAST_WORD_SECONDS, (deadline - began) / 10)
        while (actual := _answering_version(served)) is None or actual < version:
            now = time.monotonic()
            if now >= until:
                found = "was given none yet" if actual is None else f"is at {actual}"
                message = (
                    f"waited {now - began:.3g} s for weight version >= {version}; the server "
                    f"{found}"
                )
                raise ServiceError(Fault(Reason.DEADLINE_EXCEEDED, message))
            try:
                async with asyncio.timeout(min(self._progress_seconds, until - now)):
                    await served.pool.wait_changed()
            except TimeoutError:
                yield context_pb2.Progress()


def _check_room(served: ServedModel, request: Any, client: str) -> None:
    """Refuses a call that is not taken, or has no room, before it is read: that takes far longer.

    Raises:
        ServiceError: QUEUE_FULL, or why the model does not answer: that room is going to be free is
            no news to who has to go elsewhere.
    """
    view, room = served.view, served.pool.room(client)
    least = 1
    if room < math.inf:
        least = max(1, token_lower_bound(request, view, enough=int(room) + 1))
    served.pool.check_room(client, least)


def _answering_version(served: ServedModel) -> int | None:
    """Of the weights that answer; None while the server waits for the first that may.

    Raises:
        ServiceError: LOADING, CRASH_LOOP or DRAINING.
    """
    if served.pool.state is PoolState.AWAITING_WEIGHTS:
        return None
    return served.view.info.weight_version


def rpc_name(request: Message) -> str:
    """Of the RPC that takes such a request."""
    return request.DESCRIPTOR.name.removesuffix("Request")
