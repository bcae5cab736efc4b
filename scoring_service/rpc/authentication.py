"""Who may call what: an interceptor that knows tokens, before a request is even parsed."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

import grpc

from scoring_service.errors import Fault, Reason
from scoring_service.rpc.status import abort
from scoring_service.rpc.tokens import Principal, TokenFile

_principal: ContextVar[Principal | None] = ContextVar("principal", default=None)

_OPEN = ("/grpc.health.v1.Health/",)
"""Services that anybody may call: probes carry no token."""

_ADMIN = ("/scoring.v1.AdminService/",)
"""Services that need the scope `admin`; all others need `score`."""

_SCHEME = "bearer "

Context = grpc.aio.ServicerContext[Any, Any]

if TYPE_CHECKING:
    # Generic in the published types alone.
    Handler = grpc.RpcMethodHandler[Any, Any] | None


class TokenInterceptor(grpc.aio.ServerInterceptor):
    """Refuses calls without a token that allows them.

    It answers before the request is deserialised, so whoever has no token costs next to nothing.
    """

    def __init__(self, tokens: TokenFile) -> None:
        self._tokens = tokens

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Handler]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Handler:
        """See grpc.aio.ServerInterceptor."""
        method = handler_call_details.method
        if method.startswith(_OPEN):
            return await continuation(handler_call_details)
        fault = self._check(method, handler_call_details.invocation_metadata)
        if fault is None:
            return await continuation(handler_call_details)
        handler = await continuation(handler_call_details)
        return _refusing(handler, fault)

    def _check(self, method: str, metadata: Any) -> Fault | None:
        token = _token(metadata)
        if token is None:
            message = "this server wants a token: metadata `authorization: Bearer …`"
            return Fault(Reason.UNAUTHENTICATED, message)
        principal = self._tokens.find(token)
        if principal is None:
            return Fault(Reason.UNAUTHENTICATED, "the token is not known to this server")
        scope = "admin" if method.startswith(_ADMIN) else "score"
        if scope not in principal.scopes:
            message = f"{principal.name}'s token does not have the scope {scope!r}"
            return Fault(Reason.PERMISSION_DENIED, message)
        # The call runs in this very task, and its context ends with it.
        _principal.set(principal)
        return None


def identity_of(context: Context) -> str:
    """Name of the caller: of its token, else of its certificate; empty where neither is asked."""
    principal = _principal.get()
    if principal is not None:
        return principal.name
    certified = context.auth_context()
    for key in ("x509_subject_alternative_name", "x509_common_name"):
        names = certified.get(key)
        for name in names or ():
            return name.decode(errors="replace")
    return ""


def _token(metadata: Any) -> str | None:
    for key, value in metadata or ():
        if key == "authorization" and isinstance(value, str):
            scheme, token = value[: len(_SCHEME)], value[len(_SCHEME) :].strip()
            return token if scheme.lower() == _SCHEME and token else None
    return None


def _refusing(handler: Handler, fault: Fault) -> Handler:
    """A handler of the same kind that only says no, and looks at no request."""
    if handler is None:
        return None  # UNIMPLEMENTED

    # A coroutine, which gRPC takes for every kind: it need not be a generator to give nothing.
    async def refuse(_request: Any, context: Context) -> None:
        await abort(context, fault)

    makers: dict[tuple[bool, bool], Callable[..., Handler]] = {
        (False, False): grpc.unary_unary_rpc_method_handler,
        (False, True): grpc.unary_stream_rpc_method_handler,
        (True, False): grpc.stream_unary_rpc_method_handler,
        (True, True): grpc.stream_stream_rpc_method_handler,
    }
    return makers[handler.request_streaming, handler.response_streaming](refuse)
