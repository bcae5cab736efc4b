"""What the two admin clients share: channel options, settings, errors."""

import json
from dataclasses import dataclass
from typing import Any

import grpc

from scoring_client.connection.channel import ChannelOptions, Metadata
from scoring_client.connection.retry import ClientTimeout, short_time_limit
from scoring_client.connection.status import error_from_rpc
from scoring_client.errors import ProtocolError, ScoringError, reworded

ADMIN_OPTIONS: ChannelOptions = (
    ("grpc.service_config", json.dumps({"loadBalancingConfig": [{"pick_first": {}}]})),
    ("grpc.use_local_subchannel_pool", 1),
)
"""Channel options: every call goes to one and the same server, on a connection of its own. gRPC has
one for all channels of a process otherwise, and a server takes so many calls on each: as many that
wait for new weights would keep out the push that brings them."""


@dataclass(frozen=True, slots=True)
class AdminSettings:
    """What calls use that say nothing else."""

    target: str
    """Where the server is."""
    model: str
    """Model of calls that name none."""
    timeout: float | None
    """Seconds of an update; of a short call 30 of them at most."""
    metadata: Metadata
    """Sent with every call."""

    def name(self, model: str | None) -> str:
        """Return the model that a call means."""
        return self.model if model is None else model

    @property
    def unary_timeout(self) -> float | None:
        """Seconds of a short call."""
        return short_time_limit(ClientTimeout.CLIENTS, self.timeout)


_NO_ADMIN_SERVICE = (
    "this server lets nobody change its weights: AdminService is there only with tokens or client "
    "certificates, on a loopback address, or with --allow-admin, and never on the health port"
)


def admin_error(error: grpc.RpcError, request: Any = None) -> ScoringError:
    """Return this package's exception, with a hint where the whole service is missing."""
    size = 0 if request is None else request.ByteSize()
    found = error_from_rpc(
        error, request_id="", request_bytes=size, no_such_method=_NO_ADMIN_SERVICE
    )
    # Health says NOT_FOUND of a service that is not there, without a reason of ours.
    if found.code is grpc.StatusCode.NOT_FOUND and not found.reason:
        return reworded(found, f"{_NO_ADMIN_SERVICE} [{found.message}]")
    return found


def unreadable(failure: Exception) -> ProtocolError:
    """Return the error of an answer from which nothing could be made, with what went wrong."""
    error = ProtocolError(f"the answer breaks the contract: {failure!r}")
    error.__cause__ = failure
    return error
