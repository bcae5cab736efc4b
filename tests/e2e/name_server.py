"""A DNS server of one name, whose addresses a test changes: what a headless service looks like."""

from __future__ import annotations

import socket
import struct
import threading
from types import TracebackType

_A, _IN = 1, 1
_ANSWERS_THE_NAME = 0x8400
"""Flags of a response that is authoritative and without error."""
_POINTER_TO_THE_QUESTION = 0xC00C


class NameServer:
    """Answers questions for addresses (RFC 1035) over UDP on the loopback, whatever the name is.

    Args:
        addresses: IPv4 addresses of the name; change them with ``addresses = [...]``.
    """

    def __init__(self, addresses: list[str]) -> None:
        self.addresses = addresses
        self.asked = 0
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._socket.bind(("127.0.0.1", 0))
        self.port: int = self._socket.getsockname()[1]
        self._thread = threading.Thread(target=self._serve, daemon=True)

    def __enter__(self) -> NameServer:
        self._thread.start()
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._socket.sendto(b"", self._socket.getsockname())
        self._thread.join()
        self._socket.close()

    def target(self, port: int) -> str:
        """A gRPC target whose name this server resolves."""
        return f"dns://127.0.0.1:{self.port}/scoring.test:{port}"

    def _serve(self) -> None:
        while True:
            question, sender = self._socket.recvfrom(4096)
            if not question:
                return
            self._socket.sendto(self._answer(question), sender)

    def _answer(self, question: bytes) -> bytes:
        end = 12
        while question[end]:
            end += 1 + question[end]
        end += 1
        (kind,) = struct.unpack_from("!H", question, end)
        addresses = self.addresses if kind == _A else []
        self.asked += kind == _A
        header = question[:2] + struct.pack("!5H", _ANSWERS_THE_NAME, 1, len(addresses), 0, 0)
        records = b"".join(
            struct.pack("!3HIH", _POINTER_TO_THE_QUESTION, _A, _IN, 0, 4)
            + socket.inet_aton(address)
            for address in addresses
        )
        return header + question[12 : end + 4] + records
