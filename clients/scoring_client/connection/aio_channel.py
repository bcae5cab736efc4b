"""The channels of an asynchronous client."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager

import grpc
import grpc.aio

from scoring_client.connection.closed import CLOSED_MEANWHILE
from scoring_client.connection.endpoint import Endpoint
from scoring_client.connection.forks import check_fork, uses_grpc
from scoring_client.errors import ClosedClientError


class AioChannel:
    """Opens a channel for each event loop that calls come from.

    A channel of grpc.aio works only in the loop that it was opened in, and each ``asyncio.run`` has
    one of its own: a client that is made once and asked in every training step meets many.

    Args:
        where: Where to open channels; or a channel to use, which is then left open.
    """

    def __init__(self, where: Endpoint | grpc.aio.Channel) -> None:
        self._where = where
        self._own: dict[asyncio.AbstractEventLoop, grpc.aio.Channel] = {}
        self._closed = False

    def get(self) -> grpc.aio.Channel:
        """Return the channel of the running loop.

        Raises:
            ClosedClientError: the client is closed.
        """
        loop = asyncio.get_running_loop()
        check_fork()
        if not isinstance(self._where, Endpoint):
            uses_grpc(loop)
            return self._where
        if self._closed:
            raise ClosedClientError("this client was closed")
        if loop not in self._own:
            uses_grpc(loop)
            for ended in [other for other in list(self._own) if other.is_closed()]:
                self._own.pop(ended, None)
            self._own[loop] = self._where.open_aio()
        return self._own[loop]

    async def close(self) -> None:
        """Close what was opened here; in other loops that still run, soon."""
        self._closed = True
        here = asyncio.get_running_loop()
        while self._own:
            loop, channel = self._own.popitem()
            if loop is here:
                await channel.close()
            elif loop.is_running():
                asyncio.run_coroutine_threadsafe(channel.close(), loop)


@contextmanager
def telling_closed() -> Iterator[None]:
    """Tell a call whose channel was closed from a task that was cancelled.

    grpc.aio raises CancelledError for both. To a task that nobody cancelled it would say that it
    was: ``gather`` would drop it without a word, and ``except ScoringError`` would not see it.

    Raises:
        ClosedClientError: the channel was closed, or the call cancelled, while it ran.
    """
    try:
        yield
    except asyncio.CancelledError as error:
        task = asyncio.current_task()
        if task is None or task.cancelling():
            raise
        raise ClosedClientError(CLOSED_MEANWHILE) from error
