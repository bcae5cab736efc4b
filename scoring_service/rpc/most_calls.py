"""How many calls run at once: an interceptor that refuses more, with the time to come back."""

from __future__ import annotations

import inspect
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import grpc

from scoring_service.errors import Fault, Reason
from scoring_service.rpc.authentication import OPEN_SERVICES
from scoring_service.rpc.handlers import behaviour_of, refusing, replacing
from scoring_service.rpc.status import abort

_SHORTEST_RETRY = 0.1
_LONGEST_RETRY = 300.0

_MEMORY = 0.1
"""Weight of the latest call in the mean of their times."""

Context = grpc.aio.ServicerContext[Any, Any]

if TYPE_CHECKING:
    # Generic in the published types alone.
    Handler = grpc.RpcMethodHandler[Any, Any] | None


class MostCallsInterceptor(grpc.aio.ServerInterceptor):
    """Refuses calls beyond a number, before they are deserialised; those of probes never.

    gRPC's own bound gives a status that no client knows what to do with, and counts probes too.
    """

    def __init__(self, most: int, clock: Callable[[], float] = time.monotonic) -> None:
        """Begins with none.

        Args:
            most: calls at once.
            clock: in seconds.
        """
        self.running = 0
        self._most = most
        self._clock = clock
        self._mean_seconds = 1.0

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Handler]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Handler:
        """See grpc.aio.ServerInterceptor."""
        handler = await continuation(handler_call_details)
        if handler is None or handler_call_details.method.startswith(OPEN_SERVICES):
            return handler
        if self.running >= self._most:
            return refusing(handler, self._fault())
        return replacing(handler, self._counted(behaviour_of(handler)))

    def _counted(self, behaviour: Callable[..., Any]) -> Callable[..., Any]:
        if inspect.isasyncgenfunction(behaviour):

            async def stream(request: Any, context: Context) -> AsyncIterator[Any]:
                # Others may have begun while this one's request was on its way.
                if self.running >= self._most:
                    await abort(context, self._fault())
                with self._running():
                    async for response in behaviour(request, context):
                        yield response

            return stream

        async def call(request: Any, context: Context) -> Any:
            if self.running >= self._most:
                await abort(context, self._fault())
            with self._running():
                return await behaviour(request, context)

        return call

    @contextmanager
    def _running(self) -> Iterator[None]:
        began = self._clock()
        self.running += 1
        try:
            yield
        finally:
            self.running -= 1
            took = self._clock() - began
            self._mean_seconds += _MEMORY * (took - self._mean_seconds)

    def _fault(self) -> Fault:
        # By Little's law one of them ends in so many seconds.
        next_end = self._mean_seconds / self._most
        message = f"{self.running} calls are under way; at most {self._most} may be"
        retry_after = min(max(next_end, _SHORTEST_RETRY), _LONGEST_RETRY)
        return Fault(Reason.QUEUE_FULL, message, retry_after=retry_after)
