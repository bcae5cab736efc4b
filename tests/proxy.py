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
        self._accepting: threading.Thread | None = None
        self._passing: list[threading.Thread] = []

    def target(self, server: str) -> str:
        """Where clients reach a server, "host:port", through this proxy."""
        host, _, port = server.rpartition(":")
        self._server = host, int(port)
        self._accepting = threading.Thread(target=self._accept, daemon=True)
        self._accepting.start()
        return f"127.0.0.1:{self._listener.getsockname()[1]}"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        # One after the other: as long as connections are accepted, there are more and more sockets.
        stop([self._listener], [self._accepting] if self._accepting else [])
        stop(self._sockets, self._passing)

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
                self._sockets.append(near)
                far = socket.create_connection(self._server)
                self._sockets.append(far)
                for work in self.passing(near, far):
                    thread = threading.Thread(target=work, daemon=True)
                    self._passing.append(thread)
                    thread.start()


def stop(sockets: Sequence[socket.socket], threads: Sequence[threading.Thread]) -> None:
    """Closes sockets, and waits for the threads that use them.

    A socket that is only closed stays open as long as a thread waits in it: nothing wakes that one,
    and the other end is not told.
    """
    for end in sockets:
        with contextlib.suppress(OSError):
            end.shutdown(socket.SHUT_RDWR)
    for thread in threads:
        thread.join()
    for end in sockets:
        end.close()
