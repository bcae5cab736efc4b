"""A proxy that ends streams as proxies of HTTP/2 do: by a frame of its own, without a status."""

from __future__ import annotations

import contextlib
import socket
import struct
from collections.abc import Callable, Iterable, Sequence
from functools import partial

from tests.proxy import Proxy

_DATA, _HEADERS, _RST_STREAM = 0, 1, 3
_END_STREAM, _END_STREAM_AND_HEADERS = 0x1, 0x5
# RFC 7541, a literal without indexing: nothing that follows is compressed by it.
_TRAILER = b"\x00\x01x\x01y"


class Cut:
    """How a stream is ended, once so many messages of the answer have passed."""

    def __init__(self, after: int, kind: int, flags: int, payload: bytes) -> None:
        self.after = after
        self._kind, self._flags, self._payload = kind, flags, payload

    def frame(self, stream: int) -> bytes:
        """The frame that does it."""
        return _frame(self._kind, self._flags, stream, self._payload)


def reset(after: int, error: int) -> Cut:
    """RST_STREAM with an error code of RFC 9113, section 7."""
    return Cut(after, _RST_STREAM, 0, struct.pack(">I", error))


def end_of_data(after: int) -> Cut:
    """An empty DATA frame that is the last one: no trailers come."""
    return Cut(after, _DATA, _END_STREAM, b"")


def trailers_without_status(after: int) -> Cut:
    """Trailers of something else than gRPC."""
    return Cut(after, _HEADERS, _END_STREAM_AND_HEADERS, _TRAILER)


class CuttingProxy(Proxy):
    """Passes frames on between clients and a server, and cuts the first streams that carry data.

    Args:
        cuts: One for each stream that is answered, in order; beyond the list none.
    """

    def __init__(self, cuts: Iterable[Cut]) -> None:
        super().__init__()
        self._cuts = list(cuts)

    def passing(self, near: socket.socket, far: socket.socket) -> Sequence[Callable[[], None]]:
        return partial(self._to_server, near, far), partial(self._to_client, near, far)

    @staticmethod
    def _to_server(near: socket.socket, far: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := near.recv(1 << 16):
                far.sendall(data)
        _hang_up(far)

    def _to_client(self, near: socket.socket, far: socket.socket) -> None:
        passed: dict[int, int] = {}
        cuts: dict[int, Cut] = {}
        ended: set[int] = set()
        with contextlib.suppress(OSError, EOFError):
            while True:
                kind, flags, stream, payload = _read_frame(far)
                if kind == _DATA and stream not in passed and self._cuts:
                    cuts[stream] = self._cuts.pop(0)
                if kind == _DATA:
                    passed[stream] = passed.get(stream, 0) + 1
                    if stream in ended:
                        continue
                    if stream in cuts and passed[stream] > cuts[stream].after:
                        ended.add(stream)
                        near.sendall(cuts[stream].frame(stream))
                        continue
                # Headers of a stream that has ended pass: the next ones are compressed by them.
                near.sendall(_frame(kind, flags, stream, payload))
        _hang_up(near)


def _hang_up(end: socket.socket) -> None:
    """Wakes the thread that passes the other way, too; the proxy closes the socket."""
    with contextlib.suppress(OSError):
        end.shutdown(socket.SHUT_RDWR)


def _frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    return struct.pack(">I", len(payload))[1:] + struct.pack(">BBI", kind, flags, stream) + payload


def _read_frame(end: socket.socket) -> tuple[int, int, int, bytes]:
    head = _read(end, 9)
    kind, flags, stream = struct.unpack(">BBI", head[3:])
    return kind, flags, stream & 0x7FFFFFFF, _read(end, int.from_bytes(head[:3], "big"))


def _read(end: socket.socket, size: int) -> bytes:
    data = b""
    while len(data) < size:
        more = end.recv(size - len(data))
        if not more:
            raise EOFError
        data += more
    return data
