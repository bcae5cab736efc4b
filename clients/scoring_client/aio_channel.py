"""The channel of an asynchronous client."""

from __future__ import annotations

import grpc.aio

from scoring_client.endpoint import Endpoint


class AioChannel:
    """Opens a channel with the first call, in that call's loop.

    Args:
        where: Where to open one; or a channel to use, which is then left open.
    """

    def __init__(self, where: Endpoint | grpc.aio.Channel) -> None:
        self._where = where
        self._own: grpc.aio.Channel | None = None

    def get(self) -> grpc.aio.Channel:
        """Return the channel."""
        if not isinstance(self._where, Endpoint):
            return self._where
        if self._own is None:
            self._own = self._where.open_aio()
        return self._own

    async def close(self) -> None:
        """Close what was opened here."""
        if self._own is not None:
            await self._own.close()
