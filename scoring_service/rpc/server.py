"""The gRPC server: services, health, reflection, life from loading to drained."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import grpc
import structlog
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from scoring_client.proto import service_pb2, service_pb2_grpc
from scoring_service.pool.background import supervised
from scoring_service.pool.pool import WorkerPool
from scoring_service.pool.workers.readiness import PoolState
from scoring_service.rpc.admin import servicer as admin
from scoring_service.rpc.admin.config import AdminConfig
from scoring_service.rpc.admin.servicer import AdminServicer
from scoring_service.rpc.interceptors.authentication import OPEN_SERVICES, TokenInterceptor
from scoring_service.rpc.interceptors.concurrency_limit import ConcurrencyLimitInterceptor
from scoring_service.rpc.interceptors.first_message import FirstMessageInterceptor
from scoring_service.rpc.interceptors.metrics import MetricsInterceptor, expect_rpcs
from scoring_service.rpc.interceptors.open_services import OpenServicesInterceptor
from scoring_service.rpc.interceptors.tokens import TokenFile
from scoring_service.rpc.listening import listen
from scoring_service.rpc.models import Models, RequestLimits, ServedModel
from scoring_service.rpc.servicer import ScoringServicer
from scoring_service.rpc.tls import TlsFiles, server_credentials
from scoring_service.telemetry.telemetry import Telemetry

log = structlog.get_logger(__name__)

_SCORING = service_pb2.DESCRIPTOR.services_by_name["ScoringService"]
SERVICE_NAME = _SCORING.full_name

_PING_SECONDS = 20.0
"""Longest wait for the answer to a ping."""

_ALL_SERVICES = ("/",)
"""Of the plain port, where nobody is asked for a token."""

_MAX_PROBE_BYTES = 1 << 16
"""Of a request there."""

_SERVING = health_pb2.HealthCheckResponse.SERVING
_NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


@dataclass(frozen=True, slots=True)
class ServerConfig:
    """Where the server listens and what it accepts."""

    host: str
    port: int
    """0 = a free one."""
    limits: RequestLimits
    drain_seconds: float
    """Longest wait for running calls when the server ends."""
    progress_seconds: float = 15.0
    """How often a call that waits gives a sign of life."""
    tls: TlsFiles | None = None
    """None = connections are plain."""
    tokens: Path | None = None
    """See `tokens.TokenFile`; None = nobody is asked for one."""
    health_port: int | None = None
    """A plain port that answers health alone, for probes that know no TLS; 0 = a free one."""
    max_concurrent_streams: int = 256
    """Calls at once on one connection."""
    max_concurrent_calls: int = 4096
    """Calls at once on all but those of probes and admins; beyond, QUEUE_FULL."""
    max_probes: int = 1024
    """Calls of probes at once, half of them from one host."""
    first_message_seconds: float = 300.0
    """Longest way of a request to this server."""
    max_connection_age: float | None = None
    """Seconds after which a connection is asked to go, its calls finished; None = never."""
    keepalive_seconds: float = 30.0
    """Silence after which a peer is asked whether it is still there."""
    admin: AdminConfig | None = None
    """None = there is no AdminService."""


class Server:
    """Serves one model.

    Health: "" is alive, ScoringService's full name is ready, AdminService's is that updates of the
    weights can begin.
    """

    def __init__(
        self, config: ServerConfig, pool: WorkerPool, telemetry: Telemetry | None = None
    ) -> None:
        telemetry = telemetry or Telemetry()
        self.port = 0
        self.health_port: int | None = None
        self._config = config
        self._pool = pool
        self._health = health.aio.HealthServicer()
        self._watch: asyncio.Task[None] | None = None
        interceptors = [*_patience(config, OPEN_SERVICES), MetricsInterceptor(telemetry.metrics)]
        if config.tokens is not None:
            interceptors.append(TokenInterceptor(TokenFile(config.tokens)))
        # Behind the tokens: whoever has none takes no place.
        most, refused = config.max_concurrent_calls, telemetry.metrics.refused
        interceptors.append(ConcurrencyLimitInterceptor(most, refused))
        # Kept, because gRPC asks it for certificates as long as it listens.
        self._credentials = None if config.tls is None else server_credentials(config.tls)
        self._server = grpc.aio.server(
            interceptors=interceptors,
            options=_options(config, config.limits.max_request_bytes),
            # Of calls that are refused there may be as many again; and so many of probes.
            maximum_concurrent_rpcs=2 * config.max_concurrent_calls + config.max_probes,
        )
        self._health_server: grpc.aio.Server | None = None
        models = Models([ServedModel(pool, config.limits)])
        service_pb2_grpc.add_ScoringServiceServicer_to_server(
            ScoringServicer(models, config.progress_seconds, telemetry), self._server
        )
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        expect_rpcs(telemetry.metrics, _SCORING)
        names = [SERVICE_NAME, health.SERVICE_NAME, reflection.SERVICE_NAME]
        if config.admin is not None:
            admin.add_to_server(AdminServicer(models, config.admin), self._server)
            names.append(admin.SERVICE_NAME)
            expect_rpcs(telemetry.metrics, admin.SERVICE)
        reflection.enable_server_reflection(names, self._server)

    async def start(self) -> None:
        """Listens, and starts to load the model.

        Raises:
            AddressError: an address cannot be listened on.
        """
        add_port = self._server.add_insecure_port
        if self._credentials is not None:
            add_port = partial(self._server.add_secure_port, server_credentials=self._credentials)
        self.port = listen(add_port, self._config.host, self._config.port)
        if self._config.health_port is not None:
            self._health_server = self._plain_health(self._config.health_port)
        await self._health.set("", _SERVING)
        await self._health.set(SERVICE_NAME, _NOT_SERVING)
        if self._config.admin is not None:
            await self._health.set(admin.SERVICE_NAME, _NOT_SERVING)
        await self._server.start()
        if self._health_server is not None:
            await self._health_server.start()
        self._pool.start()
        self._watch = supervised(self._watch_health, "health")

    async def wait_ready(self) -> bool:
        """Waits until the model answers (True) or cannot be loaded (False)."""
        while self._pool.state in (PoolState.LOADING, PoolState.AWAITING_WEIGHTS):
            await self._pool.wait_changed()
        return self._pool.state is PoolState.READY

    async def wait_failed(self) -> None:
        """Waits until the model turns out not to be loadable."""
        while self._pool.state is not PoolState.FAILED:
            await self._pool.wait_changed()

    async def drain(self) -> None:
        """Refuses new calls, lets running ones end, and stops."""
        await self._health.set(SERVICE_NAME, _NOT_SERVING)
        try:
            await self._pool.drain(self._config.drain_seconds)
        finally:
            await self._server.stop(grace=1.0)
            if self._health_server is not None:
                await self._health_server.stop(grace=None)
            if self._watch is not None:
                self._watch.cancel()

    def _plain_health(self, port: int) -> grpc.aio.Server:
        """A server that answers health alone."""
        config = self._config
        server = grpc.aio.server(
            interceptors=_patience(config, _ALL_SERVICES),
            options=_options(config, _MAX_PROBE_BYTES),
            # Those beyond the places are told so, and may be as many.
            maximum_concurrent_rpcs=2 * config.max_probes,
        )
        health_pb2_grpc.add_HealthServicer_to_server(self._health, server)
        names = (health.SERVICE_NAME, reflection.SERVICE_NAME)
        reflection.enable_server_reflection(names, server)
        self.health_port = listen(server.add_insecure_port, config.host, port)
        return server

    async def _watch_health(self) -> None:
        told: PoolState | None = None
        while True:
            # Looked at again after it was told, because it may change while that waits.
            if self._pool.state is told:
                await self._pool.wait_changed()
                continue
            told = self._pool.state
            ready = told is PoolState.READY
            await self._health.set(SERVICE_NAME, _SERVING if ready else _NOT_SERVING)
            if self._config.admin is not None:
                takes = self._pool.takes_updates
                await self._health.set(admin.SERVICE_NAME, _SERVING if takes else _NOT_SERVING)


def _patience(
    config: ServerConfig, open_services: tuple[str, ...]
) -> list[grpc.aio.ServerInterceptor]:
    """With calls that need no token, of these services, and with requests that do not come."""
    # In this order, because a probe that sends no request takes a place, too.
    return [
        OpenServicesInterceptor(config.max_probes, open_services),
        FirstMessageInterceptor(config.first_message_seconds),
    ]


def _options(config: ServerConfig, max_request_bytes: int) -> list[tuple[str, int]]:
    silence, patience = (
        int(1000 * seconds)
        for seconds in (config.keepalive_seconds, min(config.keepalive_seconds, _PING_SECONDS))
    )
    options = [
        ("grpc.max_receive_message_length", max_request_bytes),
        ("grpc.max_concurrent_streams", config.max_concurrent_streams),
        ("grpc.so_reuseport", 0),
        # Large messages, such as weights, in few frames: HTTP/2's default of 16 KiB costs a third
        # of their speed.
        ("grpc.http2.max_frame_size", 1 << 20),
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.http2.min_recv_ping_interval_without_data_ms", 10_000),
        # A peer that is gone without a word, as behind a network that stalls, is noticed by this,
        # and its calls end as if it had hung up.
        ("grpc.keepalive_time_ms", silence),
        ("grpc.keepalive_timeout_ms", patience),
        # gRPC pings a busy connection too, to measure it, and asks for no second sign of life while
        # that one is not answered: it has to have the same patience, which is a minute otherwise.
        ("grpc.http2.ping_timeout_ms", patience),
    ]
    if config.max_connection_age is not None:
        milliseconds = int(config.max_connection_age * 1000)
        options.append(("grpc.max_connection_age_ms", milliseconds))
    return options
