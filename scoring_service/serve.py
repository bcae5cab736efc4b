"""Runs the server from start to drained."""

from __future__ import annotations

import asyncio
import signal
import sys
from dataclasses import dataclass, replace

import structlog

from scoring_service import __version__
from scoring_service.allocator import keep_freed_memory
from scoring_service.config import ServeConfig
from scoring_service.ending_signals import end_at_once
from scoring_service.engine.files.model_source import source_of
from scoring_service.errors import ConfigurationError
from scoring_service.garbage import collect_seldom, freeze_startup_objects
from scoring_service.models import tiny_model_path
from scoring_service.pool.pool import WorkerPool
from scoring_service.pool.workers.placement import default_workers, placed
from scoring_service.pool.workers.process import ProcessExecutor
from scoring_service.rpc.listening import AddressError, bracketed
from scoring_service.rpc.server import Server
from scoring_service.serving.announcing import announce
from scoring_service.serving.settings import (
    default_name,
    engine_config,
    pool_settings,
    server_config,
)
from scoring_service.telemetry.log_writer import LogWriter
from scoring_service.telemetry.logs import configure_logs
from scoring_service.telemetry.metrics import Metrics
from scoring_service.telemetry.telemetry import Telemetry
from scoring_service.telemetry.traces import traces_to

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class _Started:
    """A server that listens, while its model loads."""

    server: Server
    pool: WorkerPool
    telemetry: Telemetry
    log_writer: LogWriter
    stop: asyncio.Event
    """Set by the signal that ends it."""


async def serve(model: str | None, config: ServeConfig) -> int:
    """Serves until SIGTERM or SIGINT.

    Returns:
        The exit code: 0 after a drain, 1 when the server could not start.
    """
    config = replace(config, host=bracketed(config.host))
    try:
        started = await _start(model, config)
    except (AddressError, ConfigurationError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    freeze_startup_objects()
    collect_seldom()
    server, pool = started.server, started.pool
    announcing = asyncio.create_task(announce(server, pool, config))
    failed = asyncio.create_task(server.wait_failed())
    stopped = asyncio.create_task(started.stop.wait())
    await asyncio.wait({failed, stopped}, return_when=asyncio.FIRST_COMPLETED)
    announcing.cancel()
    if failed.done():
        started.log_writer.write(f"error: {pool.failure}\n")
    else:
        log.info(
            "draining",
            seconds=config.drain_seconds,
            calls_left=pool.calls_left,
            second_signal="ends the server at once",
        )
    await server.drain()
    started.telemetry.traces.shutdown()
    log.info("stopped")
    return 1 if failed.done() else 0


async def _start(model: str | None, config: ServeConfig) -> _Started:
    """Listens, and starts to load the model.

    Raises:
        ConfigurationError: the settings contradict one another, or there is no such model.
        AddressError: an address cannot be listened on.
    """
    source = model or str(tiny_model_path())
    engine = engine_config(source, config)
    source_of(engine)  # a worker would take as long as it starts to say the same
    log_writer = configure_logs(config.log_level, config.log_format)
    keep_freed_memory()
    name = config.served_model_name or default_name(model)
    workers = config.num_workers or default_workers(config.device)
    traces = traces_to(config.otlp_endpoint, __version__, config.traces_per_second)
    telemetry = Telemetry(Metrics(config.usage_tag), traces)
    telemetry.metrics.watch_log(log_writer)
    pool = WorkerPool(
        lambda index: ProcessExecutor(placed(engine, index, workers)),
        pool_settings(config, workers),
        name,
        telemetry.metrics,
    )
    server = Server(server_config(config, engine), pool, telemetry)
    stop = _stop_event()
    await server.start()
    try:
        metrics_port = _serve_metrics(config, telemetry.metrics, pool)
    except AddressError:
        await server.drain()
        raise
    log.info(
        "listening",
        address=f"{config.host}:{server.port}",
        metrics_port=metrics_port,
        health_port=server.health_port,
        model=name,
        source=source,
        version=__version__,
    )
    return _Started(server, pool, telemetry, log_writer, stop)


def _serve_metrics(config: ServeConfig, metrics: Metrics, pool: WorkerPool) -> int | None:
    """Their port; None where they are not asked for.

    Raises:
        AddressError: it cannot be listened on.
    """
    if config.metrics_port is None:
        return None
    metrics.watch(pool)
    host = config.metrics_host or config.host
    try:
        return metrics.serve(host, config.metrics_port)
    except OSError as error:
        message = f"cannot listen on {host}:{config.metrics_port}: {error.strerror}"
        raise AddressError(message) from error


def _stop_event() -> asyncio.Event:
    """Set by the first SIGTERM or SIGINT; a second one ends the process at once."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    signals = (signal.SIGTERM, signal.SIGINT)

    def request() -> None:
        stop.set()
        for signum in signals:
            # The loop keeps its handlers, for with them goes what wakes it: a signal that came to
            # another thread, or while it was falling asleep, would wait for the next event.
            signal.signal(signum, end_at_once)

    for signum in signals:
        loop.add_signal_handler(signum, request)
    return stop
