"""The HTTP server of metrics: a few threads at most, none of which waits without end."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Callable
from socketserver import TCPServer, ThreadingMixIn
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer

from prometheus_client import CollectorRegistry, make_wsgi_app

_MAX_CONNECTIONS = 32
"""At once, each of which has a thread; beyond, they are closed unread."""


def serve_metrics(
    host: str, port: int, registry: CollectorRegistry, silence_seconds: float = 10.0
) -> int:
    """Answers GET /metrics from threads of its own.

    Args:
        host: name or number, without brackets.
        port: 0 = a free one.
        registry: of the metrics.
        silence_seconds: after which a connection is closed.

    Returns:
        The port.

    Raises:
        OSError: the address cannot be listened on.
    """
    family, *_, address = socket.getaddrinfo(
        host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
    )[0]

    class Handler(_Handler):
        timeout = silence_seconds

    class Server(_Server):
        address_family = family

    server = Server((str(address[0]), port), Handler)
    server.set_app(make_wsgi_app(registry))
    threading.Thread(target=server.serve_forever, name="metrics", daemon=True).start()
    return int(server.server_port)


def listening_address(host: str) -> str:
    """The address as gRPC takes it: all are those of both families, and [::1] has brackets."""
    if host in ("0.0.0.0", "[::]") and socket.has_dualstack_ipv6():
        return "::"
    return host.removeprefix("[").removesuffix("]")


class _Handler(WSGIRequestHandler):
    def handle(self) -> None:
        with contextlib.suppress(TimeoutError, ConnectionError):
            super().handle()

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the library's name
        """Scrapes are not logged."""


class _Server(ThreadingMixIn, WSGIServer):
    daemon_threads = True

    def __init__(self, address: tuple[str, int], handler: Callable[..., _Handler]) -> None:
        self._places = threading.Semaphore(_MAX_CONNECTIONS)
        super().__init__(address, handler)

    def server_bind(self) -> None:
        # HTTPServer's asks name servers what the address is called. Where they do not answer, the
        # event loop would stand still for as long, with the port of gRPC open already.
        TCPServer.server_bind(self)
        host, port, *_ = self.server_address
        self.server_name, self.server_port = str(host), int(port)
        self.setup_environ()

    def process_request(self, request: Any, client_address: Any) -> None:
        if self._places.acquire(blocking=False):
            super().process_request(request, client_address)
        else:
            self.shutdown_request(request)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._places.release()
