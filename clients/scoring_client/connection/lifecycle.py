"""How a client is closed, and how it travels to another process: the same for all of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Any, Self

import grpc
import grpc.aio

from scoring_client.connection.aio_channel import AioChannel
from scoring_client.connection.endpoint import Endpoint

Reopened = tuple[Callable[..., Any], tuple[Any, ...]]
"""What ``__reduce__`` returns."""


class BlockingClient:
    """Has a channel: one that it opened, or one that was handed in and stays open."""

    def __init__(self, where: Endpoint | grpc.Channel, arguments: Mapping[str, Any]) -> None:
        """Open a channel; it connects with the first call.

        Args:
            where: Where to open one; or a channel to use.
            arguments: What makes such a client again; see ``given``.
        """
        self._arguments = arguments
        self._owns_channel = isinstance(where, Endpoint)
        self._channel: grpc.Channel = where.open() if isinstance(where, Endpoint) else where

    def __reduce__(self) -> Reopened:
        return _reopened(type(self), self._arguments)

    def __repr__(self) -> str:
        return _shown(self, self._arguments)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the channel, unless it was handed in. Calls that run are cancelled."""
        if self._owns_channel:
            self._channel.close()


class AsyncClient:
    """Has a channel for each event loop, or one that was handed in and stays open."""

    def __init__(self, where: Endpoint | grpc.aio.Channel, arguments: Mapping[str, Any]) -> None:
        """Prepare a channel; it opens with a loop's first call.

        Args:
            where: Where to open channels; or a channel to use.
            arguments: What makes such a client again; see ``given``.
        """
        self._arguments = arguments
        self._owns_channel = isinstance(where, Endpoint)
        self._channel = AioChannel(where)

    def __reduce__(self) -> Reopened:
        return _reopened(type(self), self._arguments)

    def __repr__(self) -> str:
        return _shown(self, self._arguments)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the channel, unless it was handed in. Calls that run are cancelled."""
        await self._channel.close()


def given(variables: Mapping[str, Any]) -> dict[str, Any]:
    """Return a constructor's arguments, of its ``locals()`` before it has any other."""
    return {name: value for name, value in variables.items() if name not in ("self", "__class__")}


def _shown(client: object, arguments: Mapping[str, Any]) -> str:
    """Return where a client asks; nothing of its token and keys."""
    where = repr(arguments["target"]) if arguments["channel"] is None else "channel=…"
    return f"{type(client).__name__}({where})"


def _reopened(kind: Callable[..., Any], arguments: Mapping[str, Any]) -> Reopened:
    """Return how pickle makes a client again: by its arguments, with connections of its own.

    Raises:
        TypeError: it was given an object of gRPC's, which lives in one process.
    """
    for name in ("channel", "credentials"):
        if arguments[name] is not None:
            raise TypeError(
                f"a client with {name}= cannot be pickled: make it in the process that uses it, or "
                "give it certificates"
            )
    return _open_again, (kind, dict(arguments))


def _open_again(kind: Callable[..., Any], arguments: dict[str, Any]) -> Any:
    return kind(**arguments)
