"""A server in the process that asks for it, on loopback; no measured call meets its limits."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from scoring_service.pool.observer import PoolObserver
from scoring_service.pool.pool import WorkerPool
from scoring_service.pool.settings import PoolSettings
from scoring_service.pool.workers.executor import Executor
from scoring_service.rpc.models import RequestLimits
from scoring_service.rpc.server import Server, ServerConfig
from scoring_service.telemetry.telemetry import Telemetry

_LIMITS = RequestLimits(64 << 20, 1 << 20, 65_536)


def pool_of(
    make: Callable[[int], Executor], observer: PoolObserver | None = None, **settings: Any
) -> WorkerPool:
    """One worker and its pool, with the settings that are no defaults."""
    chosen = PoolSettings(max_queue_tokens=_LIMITS.max_queue_tokens, **settings)
    return WorkerPool(make, chosen, "measured", observer)


async def start_server(pool: WorkerPool, telemetry: Telemetry | None = None) -> Server:
    """Listens on a port of its own, and returns once the pool's worker is ready."""
    config = ServerConfig("127.0.0.1", 0, _LIMITS, drain_seconds=1.0)
    server = Server(config, pool, telemetry)
    await server.start()
    await server.wait_ready()
    return server
