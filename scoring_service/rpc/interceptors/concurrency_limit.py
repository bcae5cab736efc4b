"""How many calls run at once: an interceptor that refuses more, with the time to come back."""

from __future__ import annotations

import inspect
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import cache
from typing import Any

import grpc

from scoring_service.errors import Fault, queue_full
from scoring_service.rpc.handling.caller import peer_host
from scoring_service.rpc.handling.handlers import (
    Context,
    Handler,
    Scope,
    around,
    behaviour_of,
    refusing,
    replacing,
)
from scoring_service.rpc.handling.status import abort
from scoring_service.rpc.interceptors.authentication import (
    ADMIN_SERVICES,
    OPEN_SERVICES,
    identity_of,
)
from scoring_service.rpc.interceptors.refusal_log import RefusalLog

_UNCOUNTED = OPEN_SERVICES + ADMIN_SERVICES
"""Probes, and whoever has the server drained or an update given up because it has too much to do:
those have a scope of their own, and are few."""

_TIMED = "/scoring.v1.ScoringService/"
"""Whose streams say how long a place is taken; those of reflection do not."""

_FIRST_GUESS = 1.0
"""Seconds that a call takes until one was measured, if none has been under way for longer."""

_MEMORY = 0.1
"""Weight of the latest call in the mean of their times."""


class ConcurrencyLimitInterceptor(grpc.aio.ServerInterceptor):
    """Refuses calls beyond a number, before they are deserialised; of probes and admins none.

    gRPC's own bound gives a status that no client knows what to do with, and counts probes too.
    """

    def __init__(
        self,
        most: int,
        refused: Callable[[str], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Begins with none.

        Args:
            most: calls at once.
            refused: is told the reason of each refusal.
            clock: in seconds.
        """
        self.running = 0
        self._most = most
        self._refused = refused
        self._refusal_log = RefusalLog()
        self._clock = clock
        # Made once for each RPC there is, not for each call.
        self._scope = cache(self._counting)
        self._mean_seconds: float | None = None
        """Of calls that were answered; None = none was yet."""
        self._began = 0.0
        """Sum of the times at which the calls began that are under way."""

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Handler]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Handler:
        """See grpc.aio.ServerInterceptor."""
        handler, method = await continuation(handler_call_details), handler_call_details.method
        if handler is None or method.startswith(_UNCOUNTED):
            return handler
        if self.running >= self._most:
            fault = self._fault()
            return refusing(handler, fault, lambda context: self._tell(context, method, fault))
        behaviour = behaviour_of(handler)
        # Only of what is answered in a stream: what takes no time says nothing of how long a place
        # is taken.
        timed = method.startswith(_TIMED) and inspect.isasyncgenfunction(behaviour)
        return replacing(handler, around(behaviour, self._scope(method, timed)))

    def _counting(self, method: str, timed: bool) -> Scope:
        @asynccontextmanager
        async def scope(request: Any, context: Context) -> AsyncIterator[Any]:
            # Others may have begun while this one's request was on its way.
            if self.running >= self._most:
                fault = self._fault()
                self._tell(context, method, fault)
                await abort(context, fault)
            began = self._clock()
            self.running += 1
            self._began += began
            try:
                yield request
                # Nor does whoever is refused further on.
                if timed:
                    self._answered(self._clock() - began)
            finally:
                self.running -= 1
                self._began -= began

        return scope

    def _tell(self, context: Context, method: str, fault: Fault) -> None:
        self._refused(fault.reason)
        self._refusal_log.note(peer_host(context.peer()), identity_of(context), method, fault)

    def _answered(self, seconds: float) -> None:
        if self._mean_seconds is None:
            self._mean_seconds = seconds
        self._mean_seconds += _MEMORY * (seconds - self._mean_seconds)

    def _fault(self) -> Fault:
        mean = self._mean_seconds
        if mean is None:
            mean = max(_FIRST_GUESS, self._clock() - self._began / self.running)
        # By Little's law one of them ends in so many seconds.
        next_end = mean / self._most
        message = f"{self.running} calls are under way; at most {self._most} may be"
        return queue_full(message, next_end)
