"""Counts every RPC and its bytes, and reads these with care: an interceptor around all others."""

from __future__ import annotations

import inspect
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import TYPE_CHECKING, Any

import grpc

from scoring_service.rpc.malformed import Malformed, tolerant
from scoring_service.rpc.reply_bytes import counted
from scoring_service.rpc.status import abort
from scoring_service.telemetry.metrics import Metrics

Context = grpc.aio.ServicerContext[Any, Any]
if TYPE_CHECKING:
    # Generic in the published types alone.
    Handler = grpc.RpcMethodHandler[Any, Any] | None

_CLOCK_SLACK = 0.1
"""Seconds by which a caller may see its deadline pass before this server does."""

_KINDS = {
    (False, False): "unary",
    (False, True): "server_stream",
    (True, False): "client_stream",
    (True, True): "bidi_stream",
}

_MAKERS: dict[tuple[bool, bool], Callable[..., Any]] = {
    (False, False): grpc.unary_unary_rpc_method_handler,
    (False, True): grpc.unary_stream_rpc_method_handler,
    (True, False): grpc.stream_unary_rpc_method_handler,
    (True, True): grpc.stream_stream_rpc_method_handler,
}


class MetricsInterceptor(grpc.aio.ServerInterceptor):
    """Tells `Metrics` of each RPC's begin and end, and its handler of the bytes it sent."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Handler]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Handler:
        """See grpc.aio.ServerInterceptor."""
        handler = await continuation(handler_call_details)
        if handler is None:
            return None
        streams = handler.request_streaming, handler.response_streaming
        service, _, method = handler_call_details.method.lstrip("/").partition("/")
        labels = _KINDS[streams], service, method

        def begin() -> Callable[[str], None]:
            began = time.monotonic()
            self._metrics.rpc_started(*labels)
            return lambda code: self._metrics.rpc_handled(*labels, code, time.monotonic() - began)

        return _MAKERS[streams](  # type: ignore[no-any-return]
            _around(_behaviour(handler), begin),
            request_deserializer=tolerant(handler.request_deserializer),
            response_serializer=counted(handler.response_serializer),
        )


def _behaviour(handler: Any) -> Callable[..., Any]:
    """The function that a handler of any kind runs."""
    kinds: tuple[Callable[..., Any] | None, ...] = (
        handler.unary_unary,
        handler.unary_stream,
        handler.stream_unary,
        handler.stream_stream,
    )
    return next(behaviour for behaviour in kinds if behaviour is not None)


Begin = Callable[[], Callable[[str], None]]
"""Called as an RPC begins; what it returns is called with the status as it ends."""


def _around(behaviour: Callable[..., Any], begin: Begin) -> Callable[..., Any]:
    if inspect.isasyncgenfunction(behaviour):

        async def stream(request: Any, context: Context) -> AsyncIterator[Any]:
            end = begin()
            try:
                if isinstance(request, Malformed):
                    await abort(context, request.fault)
                async for response in behaviour(request, context):
                    yield response
            except BaseException:
                end(_code_of(context))
                raise
            end("OK")

        return stream

    async def call(request: Any, context: Context) -> Any:
        end = begin()
        try:
            if isinstance(request, Malformed):
                await abort(context, request.fault)
            response = await behaviour(request, context)
        except BaseException:
            end(_code_of(context))
            raise
        end("OK")
        return response

    return call


def _code_of(context: Any) -> str:
    """Name of the status that an RPC ended with which did not end well."""
    code = context.code()
    if code:
        # As abort() got it, or its number.
        return str(code.name) if isinstance(code, grpc.StatusCode) else _NAMES[code]
    # gRPC cancels the handler when the caller hangs up, as callers do too when their deadline
    # passes: by their clock, a little before ours.
    left = context.time_remaining()
    return "CANCELLED" if left is None or left > _CLOCK_SLACK else "DEADLINE_EXCEEDED"


_NAMES = {code.value[0]: code.name for code in grpc.StatusCode}
