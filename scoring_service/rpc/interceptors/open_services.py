"""How many calls of those that anybody may make: an interceptor around all others."""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import grpc

from scoring_service.errors import Fault, Reason
from scoring_service.rpc.handling.caller import peer_host
from scoring_service.rpc.handling.handlers import (
    Context,
    Handler,
    Scope,
    around,
    behaviour_of,
    replacing,
)
from scoring_service.rpc.handling.status import abort
from scoring_service.rpc.interceptors.authentication import OPEN_SERVICES
from scoring_service.rpc.interceptors.refusal_log import RefusalLog

_RETRY_SECONDS = 10.0


class OpenServicesInterceptor(grpc.aio.ServerInterceptor):
    """Bounds calls that need no token: a `Watch` of health lasts as long as its caller likes.

    One host has half of the places, so that it leaves some for probes from elsewhere.

    Args:
        most: calls at once.
        services: prefixes of the methods that need no token.
    """

    def __init__(self, most: int, services: tuple[str, ...] = OPEN_SERVICES) -> None:
        self._most = most
        self._services = services
        self._of_host: Counter[str] = Counter()
        self._refusals = RefusalLog()

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Handler]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Handler:
        """See grpc.aio.ServerInterceptor."""
        handler, method = await continuation(handler_call_details), handler_call_details.method
        if handler is None or not method.startswith(self._services):
            return handler
        return replacing(handler, around(behaviour_of(handler), self._counted(method)))

    def _counted(self, method: str) -> Scope:
        @asynccontextmanager
        async def scope(request: Any, context: Context) -> AsyncIterator[Any]:
            host = peer_host(context.peer())
            if self._of_host[host] >= self._most // 2 or self._of_host.total() >= self._most:
                message = f"at most {self._most} probes may be under way, half of them of one host"
                fault = Fault(Reason.QUEUE_FULL, message, retry_after=_RETRY_SECONDS)
                self._refusals.note(host, "", method, fault)
                await abort(context, fault)
            self._of_host[host] += 1
            try:
                yield request
            finally:
                self._of_host[host] -= 1
                if not self._of_host[host]:
                    del self._of_host[host]

        return scope
