"""Where a client's calls go, and how: credentials, tokens, channels. What all clients share."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import grpc
import grpc.aio

from scoring_client.connection.channel import ChannelOptions, Metadata, channel_options
from scoring_client.connection.target import checked_target, full_target, stays_on_machine

Pem = bytes | str | os.PathLike[str]
"""PEM data as bytes or text, or the path of a file that holds it."""


@dataclass(frozen=True, slots=True)
class Endpoint:
    """A server, or several behind one name, and how channels to it are made."""

    target: str
    """As gRPC takes it."""
    credentials: grpc.ChannelCredentials | None
    """For TLS; None = plain."""
    options: ChannelOptions
    """gRPC's, of the channel."""

    def open(self) -> grpc.Channel:
        """Return a new channel; it connects with the first call."""
        if self.credentials is None:
            return grpc.insecure_channel(self.target, options=self.options)
        return grpc.secure_channel(self.target, self.credentials, options=self.options)

    def open_aio(self) -> grpc.aio.Channel:
        """Return a new channel of the running event loop."""
        if self.credentials is None:
            return grpc.aio.insecure_channel(self.target, options=self.options)
        return grpc.aio.secure_channel(self.target, self.credentials, options=self.options)


def endpoint(
    target: str,
    *,
    token: str | None,
    credentials: grpc.ChannelCredentials | None,
    root_certificates: Pem | None,
    client_certificate: Pem | None,
    client_key: Pem | None,
    tls: bool,
    allow_plaintext_token: bool,
    options: ChannelOptions,
) -> Endpoint:
    """Return what the arguments of a client mean; they are explained in ScoringClient.

    Raises:
        ValueError: an argument makes no sense, or the token would travel in plain text.
        OSError: a file of certificates cannot be read.
    """
    checked_target(target)
    found = _credentials(credentials, root_certificates, client_certificate, client_key, tls=tls)
    secure = found is not None or stays_on_machine(target)
    if token and not (secure or allow_plaintext_token):
        # Where something else, such as a service mesh, encrypts what leaves the machine, that has
        # to be said.
        raise ValueError(
            f"the token would travel in plain text to {target}: use TLS (tls=True, or "
            "root_certificates= for a private authority; on the command line --tls or "
            "--root-certificates). Where a service mesh encrypts the connection, say so by "
            "allow_plaintext_token=True (--allow-plaintext-token)"
        )
    return Endpoint(full_target(target), found, channel_options(target, options))


def call_metadata(token: str | None) -> Metadata:
    """Return the metadata of every call: the token, if there is one; an empty one is none.

    It travels as it is: on a plain channel whoever sees the connection sees the token.

    Raises:
        ValueError: no header can carry it.
    """
    if not token:
        return ()
    if not isinstance(token, str):
        raise ValueError(f"token: expected text, got {type(token).__name__}")
    for place, character in enumerate(token):
        if not "!" <= character <= "~":
            raise ValueError(
                f"token: character {place} is {character!r}, which no header can carry; strip() "
                "the line break of what was read from a file"
            )
    return (("authorization", f"Bearer {token}"),)


def _credentials(
    credentials: grpc.ChannelCredentials | None,
    root_certificates: Pem | None,
    client_certificate: Pem | None,
    client_key: Pem | None,
    *,
    tls: bool,
) -> grpc.ChannelCredentials | None:
    """Return credentials for TLS, or None for a plain channel.

    ``tls`` alone judges the server by gRPC's own roots, those of public authorities; the
    environment's ``GRPC_DEFAULT_SSL_ROOTS_FILE_PATH`` names a file of others.
    """
    pems = (root_certificates, client_certificate, client_key)
    if all(pem is None for pem in pems):
        return grpc.ssl_channel_credentials() if tls and credentials is None else credentials
    if credentials is not None:
        raise ValueError("give credentials or certificates, not both")
    if (client_certificate is None) != (client_key is None):
        raise ValueError("client_certificate and client_key go together")
    roots, certificate, key = map(_read_pem, pems)
    return grpc.ssl_channel_credentials(
        root_certificates=roots, private_key=key, certificate_chain=certificate
    )


def _read_pem(pem: Pem | None) -> bytes | None:
    if isinstance(pem, str) and pem.lstrip().startswith("-----BEGIN"):
        return pem.encode()
    return pem if pem is None or isinstance(pem, bytes) else Path(pem).read_bytes()
