"""Asks a server of this machine whether it is alive or ready, as kubelet does: on a plain port."""

from __future__ import annotations

from typing import Any

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from scoring_service.rpc.server import SERVICE_NAME


def serving_status(address: str, *, alive: bool, timeout: float) -> str:
    """What the health service says.

    Args:
        address: host:port of a port without TLS.
        alive: ask whether it is alive rather than whether it is ready.
        timeout: seconds.

    Returns:
        SERVING, NOT_SERVING, UNKNOWN or SERVICE_UNKNOWN.

    Raises:
        ConnectionError: nobody answered; the message says why.
    """
    request = health_pb2.HealthCheckRequest(service="" if alive else SERVICE_NAME)
    with grpc.insecure_channel(address) as channel:
        try:
            stub: Any = health_pb2_grpc.HealthStub(channel)
            answer = stub.Check(request, timeout=timeout)
        except grpc.RpcError as error:
            code = error.code().name
            raise ConnectionError(f"{address}: {code}: {error.details()}") from error
    return str(health_pb2.HealthCheckResponse.ServingStatus.Name(answer.status))
