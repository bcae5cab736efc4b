"""Networks between client and server that can be made to stand still, in one direction or both."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import threading
from collections.abc import Callable, Sequence
from enum import Enum
from functools import partial
from types import TracebackType
from typing import Self

from tests.proxy import Proxy


class Way(Enum):
    """Where no byte passes any more."""

    TO_SERVER = "to_server"
    TO_CLIENT = "to_client"
    BOTH = "both"


class StallingProxy(Proxy):
    """Passes bytes on between connections to `target` and a server, while it flows.

    While it stalls, the kernels at both ends still take what fits the sockets' buffers.
    """

    arguments: Sequence[str] = ()
    prefix: Sequence[str] = ()
    host = "127.0.0.1"

    def __init__(self) -> None:
        super().__init__()
        self._flowing = {Way.TO_SERVER: threading.Event(), Way.TO_CLIENT: threading.Event()}
        self.flow()

    def elsewhere(self, server: str) -> str:
        """Where others reach it, whatever happens here."""
        return server

    def stall(self, way: Way = Way.BOTH) -> None:
        """From now on no byte passes, and nobody is told."""
        for one, flowing in self._flowing.items():
            if way in (one, Way.BOTH):
                flowing.clear()

    def flow(self) -> None:
        """Everything that was held passes."""
        for flowing in self._flowing.values():
            flowing.set()

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.flow()
        super().__exit__(exc_type, exc, traceback)

    def passing(self, near: socket.socket, far: socket.socket) -> Sequence[Callable[[], None]]:
        return (
            partial(self._pass, Way.TO_SERVER, near, far),
            partial(self._pass, Way.TO_CLIENT, far, near),
        )

    def _pass(self, way: Way, source: socket.socket, sink: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(1 << 16):
                self._flowing[way].wait()
                sink.sendall(data)
        with contextlib.suppress(OSError):
            sink.shutdown(socket.SHUT_WR)


class StallingNamespace:
    """A network namespace for the server, joined to this one by a pair of virtual interfaces.

    It stalls by a wrong hardware address in the table of neighbours: every frame is sent, and the
    other end's kernel drops it, acknowledgements and all, as behind a switch that lost its way.
    Needs root and iproute2.

    Raises:
        OSError: there is no `ip`.
        subprocess.CalledProcessError: it may not do this.
    """

    arguments = ("--host", "0.0.0.0", "--allow-insecure")

    def __init__(self) -> None:
        self._name = f"chaos{os.getpid()}"
        near, far = f"near{os.getpid()}", f"far{os.getpid()}"
        net = f"10.231.{os.getpid() % 256}"
        self.prefix = ("ip", "netns", "exec", self._name)
        self.host = f"{net}.6"
        self._server = f"{net}.2"
        self._run("ip", "netns", "add", self._name)
        try:
            self._run("ip", "link", "add", near, "type", "veth", "peer", "name", far)
            self._run("ip", "link", "set", far, "netns", self._name)
            # Two networks on one wire: the first stalls, the other is for everybody else.
            macs = {}
            for prefix, device, own in (((), near, "1"), (self.prefix, far, "2")):
                self._run(*prefix, "ip", "addr", "add", f"{net}.{own}/30", "dev", device)
                self._run(*prefix, "ip", "addr", "add", f"{net}.{int(own) + 4}/30", "dev", device)
                self._run(*prefix, "ip", "link", "set", device, "up")
                shown = self._run(*prefix, "cat", f"/sys/class/net/{device}/address")
                macs[device] = shown.strip()
            self._run(*self.prefix, "ip", "link", "set", "lo", "up")
        except (OSError, subprocess.CalledProcessError):
            self.close()
            raise
        self._neighbours = {
            Way.TO_SERVER: ((), self._server, near, macs[far]),
            Way.TO_CLIENT: (self.prefix, f"{net}.1", far, macs[near]),
        }
        self.flow()

    def target(self, server: str) -> str:
        """Where clients reach a server through this network."""
        return f"{self._server}:{server.rpartition(':')[2]}"

    def elsewhere(self, server: str) -> str:
        """Where others reach it, whatever happens here."""
        return f"{self.host}:{server.rpartition(':')[2]}"

    def stall(self, way: Way = Way.BOTH) -> None:
        """From now on no packet passes, and nobody is told."""
        for one in self._neighbours:
            if way in (one, Way.BOTH):
                self._point(one, "02:00:00:00:00:01")

    def flow(self) -> None:
        """Packets pass; those that were lost are sent again when TCP finds that it is time."""
        for way, (_, _, _, mac) in self._neighbours.items():
            self._point(way, mac)

    def close(self) -> None:
        """Removes the namespace, and with it the interfaces."""
        self._run("ip", "netns", "del", self._name)

    def _point(self, way: Way, mac: str) -> None:
        prefix, address, device, _ = self._neighbours[way]
        to = ("to", address, "lladdr", mac, "dev", device, "nud", "permanent")
        self._run(*prefix, "ip", "neigh", "replace", *to)

    @staticmethod
    def _run(*command: str) -> str:
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()
