"""Certificates that a test makes as it needs them."""

from __future__ import annotations

import os
from datetime import UTC, datetime, timedelta
from pathlib import Path

import grpc
import trustme


class Authority:
    """A certificate authority of its own."""

    def __init__(self) -> None:
        self._ca = trustme.CA()

    @property
    def pem(self) -> bytes:
        return self._ca.cert_pem.bytes()

    def issue(self, name: str, *, expired: bool = False) -> trustme.LeafCert:
        ended = datetime.now(UTC) - timedelta(days=1)
        return self._ca.issue_cert(name, not_after=ended if expired else None)

    def server_files(self, folder: Path) -> tuple[Path, Path]:
        """(certificate, key) of localhost."""
        folder.mkdir(exist_ok=True)
        return write_pair(self.issue("localhost"), folder)


def write_pair(leaf: trustme.LeafCert, folder: Path) -> tuple[Path, Path]:
    """Writes a certificate and its key, each in one stroke, as a rotation does."""
    chain = b"".join(blob.bytes() for blob in leaf.cert_chain_pems)
    contents = {"cert.pem": chain, "key.pem": leaf.private_key_pem.bytes()}
    for name, content in contents.items():
        (folder / f".{name}").write_bytes(content)
        os.replace(folder / f".{name}", folder / name)  # noqa: PTH105
    return folder / "cert.pem", folder / "key.pem"


def credentials(trusted: bytes, leaf: trustme.LeafCert | None = None) -> grpc.ChannelCredentials:
    """A client's, that trusts an authority and shows a certificate if it has one."""
    if leaf is None:
        return grpc.ssl_channel_credentials(trusted)
    chain = b"".join(blob.bytes() for blob in leaf.cert_chain_pems)
    return grpc.ssl_channel_credentials(trusted, leaf.private_key_pem.bytes(), chain)
