"""How long a call may be without its request: an interceptor around all others."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import grpc

from scoring_service.errors import Fault, Reason
from scoring_service.rpc.handling.handlers import MAKERS, Context, Handler, around, behaviour_of
from scoring_service.rpc.handling.status import abort


class FirstMessageInterceptor(grpc.aio.ServerInterceptor):
    """Ends calls whose one request does not come.

    gRPC itself waits for it without end, before any handler runs, while the call holds one of its
    places. So the handlers that it gets take streams, and read one message with a limit.

    Args:
        seconds: a request's whole way may take; of those that stream, whoever reads them says.
    """

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Handler]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Handler:
        """See grpc.aio.ServerInterceptor."""
        handler: Any = await continuation(handler_call_details)
        if handler is None or handler.request_streaming:
            return handler  # type: ignore[no-any-return]
        return MAKERS[True, handler.response_streaming](  # type: ignore[no-any-return]
            around(behaviour_of(handler), self._reading),
            request_deserializer=handler.request_deserializer,
            response_serializer=handler.response_serializer,
        )

    @asynccontextmanager
    async def _reading(self, _requests: Any, context: Context) -> AsyncIterator[Any]:
        try:
            async with asyncio.timeout(self._seconds):
                request = await context.read()
        except TimeoutError:
            message = f"no request came within {self._seconds:g} s of the call's beginning"
            await abort(context, Fault(Reason.DEADLINE_EXCEEDED, message))
        if request is grpc.aio.EOF:
            await abort(context, Fault(Reason.INVALID_FIELD, "the call has no request"))
        yield request
