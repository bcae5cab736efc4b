"""Handlers of any kind of RPC, as interceptors take them apart and put them together."""

from __future__ import annotations

import inspect
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, aclosing
from typing import Any, TypeAlias

import grpc

from scoring_service.errors import Fault
from scoring_service.rpc.handling.status import abort

Context = grpc.aio.ServicerContext[Any, Any]
"""What gRPC hands an RPC beside its request."""

Handler: TypeAlias = "grpc.RpcMethodHandler[Any, Any] | None"
"""Of a method; None where there is none. Generic in the published types alone: quoted therefore."""

MAKERS: dict[tuple[bool, bool], Callable[..., Any]] = {
    (False, False): grpc.unary_unary_rpc_method_handler,
    (False, True): grpc.unary_stream_rpc_method_handler,
    (True, False): grpc.stream_unary_rpc_method_handler,
    (True, True): grpc.stream_stream_rpc_method_handler,
}
"""(whether requests stream, whether responses do) -> what makes such a handler."""

Scope = Callable[[Any, Context], AbstractAsyncContextManager[Any]]
"""Entered with an RPC's request before its behaviour runs, left when that is over; gives the
request that the behaviour is handed."""


def behaviour_of(handler: Any) -> Callable[..., Any]:
    """The function that a handler of any kind runs."""
    kinds: tuple[Callable[..., Any] | None, ...] = (
        handler.unary_unary,
        handler.unary_stream,
        handler.stream_unary,
        handler.stream_stream,
    )
    return next(behaviour for behaviour in kinds if behaviour is not None)


def around(behaviour: Callable[..., Any], scope: Scope) -> Callable[..., Any]:
    """A behaviour of the same kind that runs within a scope.

    A caller may leave between two messages of a stream. It is closed from within, then: what the
    behaviour holds is free before the scope is left. An iterator that is dropped would be closed by
    a task of its own some time later, and its innermost part last.

    Args:
        behaviour: a coroutine function, or a function that gives an async generator.
        scope: see there.
    """
    if inspect.isasyncgenfunction(behaviour):

        async def stream(request: Any, context: Context) -> AsyncIterator[Any]:
            given: Any = None
            responses: Any = None
            try:
                async with (
                    scope(request, context) as given,
                    aclosing(behaviour(given, context)) as responses,
                ):
                    async for response in responses:
                        yield response
            except grpc.aio.AbortError as error:
                del request, context, given, responses
                _forget_where(error)
                raise

        return stream

    # Handlers of health give coroutines, whichever way they answer.
    async def call(request: Any, context: Context) -> Any:
        given: Any = None
        try:
            async with scope(request, context) as given:
                return await behaviour(given, context)
        except grpc.aio.AbortError as error:
            del request, context, given
            _forget_where(error)
            raise

    return call


def _forget_where(error: grpc.aio.AbortError) -> None:
    """Lets go of the frames that an error came through, and of the fault that it tells.

    gRPC keeps the error in the state of the call, which its context holds, and so does each of the
    frames: with the request, and what was made of it, they would stay until a full collection.
    """
    error.__traceback__ = error.__context__ = None


def replacing(handler: Any, behaviour: Callable[..., Any], **functions: Any) -> Handler:
    """A handler of the same kind that runs something else.

    Args:
        handler: of the method.
        behaviour: the function that it runs.
        functions: `request_deserializer` and `response_serializer`, where they are not the same.
    """
    own = ("request_deserializer", "response_serializer")
    maker = MAKERS[handler.request_streaming, handler.response_streaming]
    return maker(behaviour, **{name: getattr(handler, name) for name in own} | functions)  # type: ignore[no-any-return]


def refusing(
    handler: Handler, fault: Fault, tell: Callable[[Context], None] | None = None
) -> Handler:
    """A handler that only says no, and looks at no request.

    Its requests stream, whatever those of the method do: for a method with one request gRPC waits
    for it before the handler runs, and a peer that never sends it would hold a place in gRPC
    without being told anything.

    Args:
        handler: of the method; None where there is none.
        fault: what it says.
        tell: is called before.
    """
    if handler is None:
        return None  # UNIMPLEMENTED

    # A coroutine, which gRPC takes for every kind: it need not be a generator to give nothing.
    async def refuse(_requests: Any, context: Context) -> None:
        if tell is not None:
            tell(context)
        await abort(context, fault)

    return MAKERS[True, handler.response_streaming](refuse)  # type: ignore[no-any-return]
