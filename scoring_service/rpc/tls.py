"""TLS of the server: certificates from files, read again when they are rotated."""

from __future__ import annotations

import ipaddress
import ssl
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import grpc
import structlog

from scoring_service.errors import ConfigurationError

log = structlog.get_logger(__name__)

_Stamp = tuple[tuple[int, int, int], ...]


@dataclass(frozen=True, slots=True)
class TlsFiles:
    """PEM files."""

    certificate: Path
    """The server's chain, its own certificate first."""
    key: Path
    client_ca: Path | None = None
    """Whose certificates clients must show (mutual TLS); None = they show none."""


def server_credentials(files: TlsFiles) -> grpc.ServerCredentials:
    """Credentials that follow their files: each new connection gets what they hold then.

    Connections that stand are left alone. Files that do not fit together, as in the middle of a
    rotation, are not used: the last good ones stay, and the log says so.

    Raises:
        ConfigurationError: the files cannot be used now.
    """
    source = _RotatingFiles(files)
    # gRPC takes None for "as before"; its published types forget that.
    fetch = cast(Callable[[], grpc.ServerCertificateConfiguration], source.fetch)
    return grpc.dynamic_ssl_server_credentials(
        source.first, fetch, require_client_authentication=files.client_ca is not None
    )


class _RotatingFiles:
    """Reads the files again when one of them changed."""

    def __init__(self, files: TlsFiles) -> None:
        self._files = files
        self._lock = threading.Lock()
        self._complaint = ""
        """What was last logged of files that are unusable."""
        try:
            self._stamp = self._look()
            self.first = self._read()
        except (OSError, ValueError) as error:
            raise ConfigurationError(f"TLS cannot be set up: {error}") from error

    def fetch(self) -> grpc.ServerCertificateConfiguration | None:
        """Called by gRPC for every new connection, from its own threads; None = as before."""
        with self._lock:
            try:
                stamp = self._look()
                if stamp == self._stamp:
                    self._complaint = ""
                    return None
                found = self._read()
            except (OSError, ValueError) as error:
                if str(error) != self._complaint:
                    self._complaint = str(error)
                    log.error("tls_files_unusable", message=self._complaint)
                return None
            self._stamp, self._complaint = stamp, ""
        log.info("tls_files_reloaded", certificate=str(self._files.certificate))
        return found

    def _paths(self) -> list[Path]:
        files = self._files
        return [path for path in (files.certificate, files.key, files.client_ca) if path]

    def _look(self) -> _Stamp:
        stats = [path.stat() for path in self._paths()]
        return tuple((s.st_mtime_ns, s.st_ino, s.st_size) for s in stats)

    def _read(self) -> grpc.ServerCertificateConfiguration:
        """What the files hold.

        Raises:
            OSError: a file cannot be read, or is no PEM; an ssl.SSLError is one.
        """
        files = self._files
        # gRPC notices a key of another certificate only when a client connects.
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        try:
            context.load_cert_chain(files.certificate, files.key)
            if files.client_ca is not None:
                context.load_verify_locations(files.client_ca)
        except ssl.SSLError as error:
            names = ", ".join(map(str, self._paths()))
            raise ValueError(f"{names}: {error.reason or error}") from error
        roots = None if files.client_ca is None else files.client_ca.read_bytes()
        pair = files.key.read_bytes(), files.certificate.read_bytes()
        return grpc.ssl_server_certificate_configuration([pair], roots)


def is_public(host: str) -> bool:
    """Whether others than this machine can reach an address of that name."""
    bare = host.removeprefix("[").removesuffix("]")
    if bare == "localhost":
        return False
    try:
        return not ipaddress.ip_address(bare).is_loopback
    except ValueError:
        return True  # a name: whatever it resolves to
