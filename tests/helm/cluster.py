"""What a cluster has beside the chart: Secrets, and a client that they let in."""

from __future__ import annotations

from typing import Any

import grpc

from tests.helm.pod import Files
from tests.rpc.authorities import Authority, credentials

TOKEN = "a-token-of-the-test-0123456789"


class Cluster:
    """Secrets that the chart expects to be there, and a client that has what it needs."""

    def __init__(self) -> None:
        self.authority = Authority()
        self.server = self.authority.issue("localhost")
        # Another one signs clients: who trusts the wrong one is not let in, or goes away.
        self.clients = Authority()
        self.client = self.clients.issue("trainer")
        self.secrets: Files = {
            # As cert-manager makes it: names of the Service, and the authority beside the pair.
            "server-tls": {**self.pair(self.server), "ca.crt": self.authority.pem},
            "test-client": self.pair(self.client),
            "test-token": {"token": TOKEN.encode()},
        }

    @property
    def inline(self) -> dict[str, Any]:
        """Values that give the chart what is in these Secrets."""
        pair = self.pair(self.server)
        return {
            "enabled": True,
            "certificate": pair["tls.crt"].decode(),
            "key": pair["tls.key"].decode(),
            "serverCa": self.authority.pem.decode(),
            "clientCa": {"enabled": True, "certificate": self.clients.pem.decode()},
        }

    @staticmethod
    def pair(leaf: Any) -> dict[str, bytes]:
        chain = b"".join(blob.bytes() for blob in leaf.cert_chain_pems)
        return {"tls.crt": chain, "tls.key": leaf.private_key_pem.bytes()}

    def channel(self, port: int, *, secured: bool) -> grpc.Channel:
        address = f"localhost:{port}"
        if not secured:
            return grpc.insecure_channel(address)
        return grpc.secure_channel(address, credentials(self.authority.pem, self.client))
