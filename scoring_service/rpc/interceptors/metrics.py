"""The interceptor around all others: counts every RPC and its bytes, and reads these with care."""

from __future__ import annotations

import inspect
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from functools import cache
from typing import Any

import grpc
from google.protobuf import descriptor_pool
from google.protobuf.descriptor import ServiceDescriptor

from scoring_service.rpc.handling.handlers import Context, Handler, behaviour_of, replacing
from scoring_service.rpc.handling.malformed import MalformedRequest, catch_decode_errors
from scoring_service.rpc.handling.reply_bytes import counted
from scoring_service.rpc.handling.status import abort, code_of
from scoring_service.telemetry.metrics import Metrics

_KINDS = {
    (False, False): "unary",
    (False, True): "server_stream",
    (True, False): "client_stream",
    (True, True): "bidi_stream",
}


def expect_rpcs(metrics: Metrics, service: ServiceDescriptor) -> None:
    """Shows the RPCs of a service before the first of them begins."""
    for method in service.methods:
        metrics.rpc_known(_kind(service.full_name, method.name), service.full_name, method.name)


@cache
def _kind(service: str, method: str) -> str:
    """Of an RPC by its contract: the handler of one that is refused may be of another."""
    found = descriptor_pool.Default().FindServiceByName(service).methods_by_name[method]
    return _KINDS[found.client_streaming, found.server_streaming]


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
        service, _, method = handler_call_details.method.lstrip("/").partition("/")
        labels = _kind(service, method), service, method

        def begin() -> Callable[[str], None]:
            began = time.monotonic()
            self._metrics.rpc_started(*labels)
            return lambda code: self._metrics.rpc_handled(*labels, code, time.monotonic() - began)

        return replacing(
            handler,
            _around(behaviour_of(handler), begin),
            request_deserializer=catch_decode_errors(handler.request_deserializer),
            response_serializer=counted(handler.response_serializer),
        )


Begin = Callable[[], Callable[[str], None]]
"""Called as an RPC begins; what it returns is called with the status as it ends."""


def _around(behaviour: Callable[..., Any], begin: Begin) -> Callable[..., Any]:
    if inspect.isasyncgenfunction(behaviour):

        async def stream(request: Any, context: Context) -> AsyncIterator[Any]:
            end = begin()
            try:
                if isinstance(request, MalformedRequest):
                    await abort(context, request.fault)
                async for response in behaviour(request, context):
                    yield response
            except BaseException:
                end(code_of(context))
                raise
            end("OK")

        return stream

    async def call(request: Any, context: Context) -> Any:
        end = begin()
        try:
            if isinstance(request, MalformedRequest):
                await abort(context, request.fault)
            response = await behaviour(request, context)
        except BaseException:
            end(code_of(context))
            raise
        end("OK")
        return response

    return call
