"""Who may call what: an interceptor that knows tokens, before a request is even parsed."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextvars import ContextVar
from typing import Any

import grpc

from scoring_service.errors import Fault, Reason
from scoring_service.rpc.handling.caller import peer_host
from scoring_service.rpc.handling.handlers import Context, Handler, refusing
from scoring_service.rpc.interceptors.refusal_log import RefusalLog
from scoring_service.rpc.interceptors.tokens import Principal, TokenFile

_principal: ContextVar[Principal | None] = ContextVar("principal", default=None)

OPEN_SERVICES = ("/grpc.health.v1.Health/",)
"""Services that anybody may call at any time: probes carry no token."""

ADMIN_SERVICES = ("/scoring.v1.AdminService/",)
"""Services that need the scope `admin`; all others need `score`."""

_SCHEME = "bearer "


class TokenInterceptor(grpc.aio.ServerInterceptor):
    """Refuses calls without a token that allows them.

    It answers before the request is deserialised, so whoever has no token costs next to nothing.
    """

    def __init__(self, tokens: TokenFile) -> None:
        self._tokens = tokens
        self._refusal_log = RefusalLog()

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Handler]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Handler:
        """See grpc.aio.ServerInterceptor."""
        method = handler_call_details.method
        if method.startswith(OPEN_SERVICES):
            return await continuation(handler_call_details)
        token = _token(handler_call_details.invocation_metadata)
        principal = None if token is None else self._tokens.find(token)
        fault = _fault(method, token, principal)
        if fault is None:
            # The call runs in this very task, and its context ends with it.
            _principal.set(principal)
            return await continuation(handler_call_details)
        handler = await continuation(handler_call_details)
        name = "" if principal is None else principal.name

        def tell(context: Context) -> None:
            self._refusal_log.note(peer_host(context.peer()), name, method, fault)

        return refusing(handler, fault, tell)


def _fault(method: str, token: str | None, principal: Principal | None) -> Fault | None:
    """Why the owner of a token may not call a method; None = it may."""
    if token is None:
        message = "this server wants a token: metadata `authorization: Bearer …`"
        return Fault(Reason.UNAUTHENTICATED, message)
    if principal is None:
        return Fault(Reason.UNAUTHENTICATED, "the token is not known to this server")
    scope = "admin" if method.startswith(ADMIN_SERVICES) else "score"
    if scope not in principal.scopes:
        message = f"{principal.name}'s token does not have the scope {scope!r}"
        return Fault(Reason.PERMISSION_DENIED, message)
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
