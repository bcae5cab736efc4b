"""A proxy between clients and a server, whose subclasses say what passes."""

from __future__ import annotations

import contextlib
import socket
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Self


class Proxy(ABC):
    """Takes connections and makes one to the server for each, which threads pass bytes between."""

    def __init__(self) -> None:
        self._server: tuple[str, int] = ("", 0)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._sockets: list[socket.socket] = []

    def target(self, server: str) -> str:
        """Where clients reach a server, "host:port", through this proxy."""
        host, _, port = server.rpartition(":")
        self._server = host, int(port)
        threading.Thread(target=self._accept, daemon=True).start()
        return f"127.0.0.1:{self._listener.getsockname()[1]}"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for end in (self._listener, *self._sockets):
            end.close()

    @abstractmethod
    def passing(self, near: socket.socket, far: socket.socket) -> Sequence[Callable[[], None]]:
        """What passes bytes of one connection, a thread each.

        Args:
            near: the client's end.
            far: the server's.
        """

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                near, _ = self._listener.accept()
                far = socket.create_connection(self._server)
                self._sockets += [near, far]
                for work in self.passing(near, far):
                    threading.Thread(target=work, daemon=True).start()
