"""The interceptor around all others: counts every RPC and its bytes, and reads these with care."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import cache
from typing import Any

import grpc
from google.protobuf import descriptor_pool
from google.protobuf.descriptor import ServiceDescriptor

from scoring_service.rpc.handling.handlers import (
    Context,
    Handler,
    Scope,
    around,
    behaviour_of,
    replacing,
)
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


def _kind(service: str, method: str) -> str:
    """Of an RPC by its contract: the handler of one that is refused may be of another."""
    found = descriptor_pool.Default().FindServiceByName(service).methods_by_name[method]
    return _KINDS[found.client_streaming, found.server_streaming]


class MetricsInterceptor(grpc.aio.ServerInterceptor):
    """Tells `Metrics` of each RPC's begin and end, and its handler of the bytes it sent."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics
        # Made once for each RPC there is, not for each call.
        self._scope = cache(self._counting)

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Handler]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Handler:
        """See grpc.aio.ServerInterceptor."""
        handler = await continuation(handler_call_details)
        if handler is None:
            return None
        return replacing(
            handler,
            around(behaviour_of(handler), self._scope(handler_call_details.method)),
            request_deserializer=catch_decode_errors(handler.request_deserializer),
            response_serializer=counted(handler.response_serializer),
        )

    def _counting(self, full_name: str) -> Scope:
        service, _, method = full_name.lstrip("/").partition("/")
        kind = _kind(service, method)

        @asynccontextmanager
        async def scope(request: Any, context: Context) -> AsyncIterator[Any]:
            began, code = time.monotonic(), "OK"
            self._metrics.rpc_started(kind, service, method)
            try:
                if isinstance(request, MalformedRequest):
                    await abort(context, request.fault)
                yield request
            except BaseException:
                code = code_of(context)
                raise
            finally:
                seconds = time.monotonic() - began
                self._metrics.rpc_handled(kind, service, method, code, seconds)

        return scope
