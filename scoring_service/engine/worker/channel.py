"""Messages between the server and its workers over a socket pair, arrays without a copy.

`pickle` protocol 5 leaves the memory of arrays out of its stream. It is sent from where it lies
and received where it stays: what a large result costs is the kernel's copy in and out of the
socket. The other end is always our own process: nothing from the network is ever unpickled.
"""

from __future__ import annotations

import pickle
import socket
import struct
import threading
from collections.abc import Sequence
from typing import Any

_BUFFER_BYTES = 4 << 20
"""What the kernel is asked to hold of either direction."""

_COUNT = struct.Struct("<I")

_MAX_PIECES = 512
"""Pieces of one system call, below the kernel's IOV_MAX."""


class Channel:
    """One end. Any thread may send; one thread receives."""

    def __init__(self, end: socket.socket) -> None:
        self._socket = end
        self._sending = threading.Lock()
        for option in (socket.SO_SNDBUF, socket.SO_RCVBUF):
            end.setsockopt(socket.SOL_SOCKET, option, _BUFFER_BYTES)

    def send(self, message: object) -> None:
        """Sends a message; blocks while the other end takes none.

        Raises:
            OSError: the other end is gone.
        """
        buffers: list[pickle.PickleBuffer] = []
        stream = pickle.dumps(message, protocol=5, buffer_callback=buffers.append)
        pieces = [memoryview(stream), *(buffer.raw() for buffer in buffers)]
        sizes = struct.pack(f"<{len(pieces)}Q", *(piece.nbytes for piece in pieces))
        with self._sending:
            self._send_all([memoryview(_COUNT.pack(len(pieces)) + sizes), *pieces])

    def receive(self) -> Any:
        """The next message.

        Raises:
            EOFError: the other end is gone.
            OSError: the connection broke.
        """
        (count,) = _COUNT.unpack(self._read(_COUNT.size))
        sizes = struct.unpack(f"<{count}Q", self._read(8 * count))
        stream, *buffers = (self._read(size) for size in sizes)
        return pickle.loads(stream, buffers=buffers)

    def close(self) -> None:
        """Closes this end."""
        self._socket.close()

    def _send_all(self, pieces: Sequence[memoryview]) -> None:
        left = [piece for piece in pieces if piece.nbytes]
        while left:
            sent = self._socket.sendmsg(left[:_MAX_PIECES])
            while left and sent >= left[0].nbytes:
                sent -= left.pop(0).nbytes
            if sent:
                left[0] = left[0][sent:]

    def _read(self, size: int) -> bytearray:
        found = bytearray(size)
        view = memoryview(found)
        while view:
            taken = self._socket.recv_into(view)
            if taken == 0:
                raise EOFError
            view = view[taken:]
        return found
