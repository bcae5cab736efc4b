"""Runs the server from start to drained: signals, progress, what it prints for people."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import sys
from dataclasses import replace
from pathlib import Path

import structlog

from scoring_service import __version__
from scoring_service.allocator import keep_freed_memory
from scoring_service.banner import ListenAddress, banner
from scoring_service.config import ServeConfig
from scoring_service.ending_signals import end_at_once
from scoring_service.engine.files.model_source import source_of
from scoring_service.errors import ConfigurationError
from scoring_service.garbage import freeze_startup_objects
from scoring_service.models import tiny_model_path
from scoring_service.pool.pool import WorkerPool
from scoring_service.pool.settings import PoolSettings
from scoring_service.pool.streams.self_audit import AuditSettings
from scoring_service.pool.workers.placement import default_workers, placed
from scoring_service.pool.workers.process import ProcessExecutor
from scoring_service.pool.workers.readiness import PoolState
from scoring_service.rpc.admin.config import AdminConfig
from scoring_service.rpc.listening import AddressError, bracketed
from scoring_service.rpc.models import RequestLimits
from scoring_service.rpc.server import Server, ServerConfig
from scoring_service.rpc.tls import TlsFiles, is_public
from scoring_service.telemetry.logs import configure_logs
from scoring_service.telemetry.metrics import Metrics
from scoring_service.telemetry.telemetry import Telemetry
from scoring_service.telemetry.traces import traces_to
from scoring_service.types import EngineConfig

log = structlog.get_logger(__name__)

_REPORT_SECONDS = 10


async def serve(model: str | None, config: ServeConfig) -> int:
    """Serves until SIGTERM or SIGINT.

    Returns:
        The exit code: 0 after a drain, 1 when the server could not start.
    """
    config = replace(config, host=bracketed(config.host))
    source = model or str(tiny_model_path())
    engine = _engine_config(source, config)
    try:
        source_of(engine)  # a worker would take as long as it starts to say the same
    except ConfigurationError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    log_writer = configure_logs(config.log_level, config.log_format)
    keep_freed_memory()
    name = config.served_model_name or _default_name(model)
    workers = config.num_workers or default_workers(config.device)
    try:
        traces = traces_to(config.otlp_endpoint, __version__, config.traces_per_second)
    except ConfigurationError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    telemetry = Telemetry(Metrics(config.usage_tag), traces)
    telemetry.metrics.watch_log(log_writer)
    pool = WorkerPool(
        lambda index: ProcessExecutor(placed(engine, index, workers)),
        _pool_settings(config, workers),
        name,
        telemetry.metrics,
    )
    limits = RequestLimits(
        max_request_bytes=config.max_request_bytes,
        max_queue_tokens=config.max_queue_tokens,
        preferred_tokens_per_call=config.preferred_tokens_per_call,
        max_k=config.max_k,
        max_priority=config.max_priority,
    )
    try:
        server = Server(_server_config(config, limits, engine), pool, telemetry)
    except ConfigurationError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    stop = _stop_event()
    try:
        await server.start()
    except AddressError as error:
        print(error, file=sys.stderr)
        return 1
    metrics_port = None
    if config.metrics_port is not None:
        telemetry.metrics.watch(pool)
        metrics_host = config.metrics_host or config.host
        try:
            metrics_port = telemetry.metrics.serve(metrics_host, config.metrics_port)
        except OSError as error:
            print(
                f"cannot listen on {metrics_host}:{config.metrics_port}: {error.strerror}",
                file=sys.stderr,
            )
            await server.drain()
            return 1
    log.info(
        "listening",
        address=f"{config.host}:{server.port}",
        metrics_port=metrics_port,
        health_port=server.health_port,
        model=name,
        source=source,
        version=__version__,
    )
    freeze_startup_objects()
    announce = asyncio.create_task(_announce(server, pool, config))
    failed = asyncio.create_task(server.wait_failed())
    stopped = asyncio.create_task(stop.wait())
    await asyncio.wait({failed, stopped}, return_when=asyncio.FIRST_COMPLETED)
    announce.cancel()
    if failed.done():
        log_writer.write(f"error: {pool.failure}\n")
    else:
        log.info(
            "draining",
            seconds=config.drain_seconds,
            calls_left=pool.calls_left,
            second_signal="ends the server at once",
        )
    await server.drain()
    telemetry.traces.shutdown()
    log.info("stopped")
    return 1 if failed.done() else 0


def _engine_config(source: str, config: ServeConfig) -> EngineConfig:
    return EngineConfig(
        model=source,
        revision=config.revision,
        dtype=config.dtype,
        residual_dtype=config.residual_dtype,
        head_dtype=config.head_dtype,
        device=config.device,
        max_model_len=config.max_model_len,
        max_batch_tokens=config.max_batch_tokens,
        chunk_size=config.chunk_size,
        tokens_beside_samples=config.tokens_beside_samples,
        memory_utilization=config.memory_utilization,
        cpu_kernels=config.cpu_kernels,
        cuda_graphs=config.cuda_graphs,
        path=config.path,
        trust_remote_code=config.trust_remote_code,
        weight_version=config.weight_version,
        threads=config.threads,
    )


def _server_config(
    config: ServeConfig, limits: RequestLimits, engine: EngineConfig
) -> ServerConfig:
    """Where and for whom to listen.

    Raises:
        ConfigurationError: the settings contradict one another, or would expose the server.
    """
    if (config.tls_certificate is None) != (config.tls_key is None):
        raise ConfigurationError("tls_certificate and tls_key go together")
    if config.tls_client_ca is not None and config.tls_certificate is None:
        raise ConfigurationError("tls_client_ca needs tls_certificate and tls_key")
    asks = config.auth_tokens is not None or config.tls_client_ca is not None
    if is_public(config.host) and not config.allow_insecure:
        missing = [
            what
            for what, there in (
                ("TLS (--tls-certificate, --tls-key)", config.tls_certificate is not None),
                ("authentication (--auth-tokens or --tls-client-ca)", asks),
            )
            if not there
        ]
        if missing:
            raise ConfigurationError(
                f"{config.host} can be reached by others, and there is no "
                f"{' and no '.join(missing)}; --allow-insecure listens all the same"
            )
    tls = None
    if config.tls_certificate is not None and config.tls_key is not None:
        tls = TlsFiles(config.tls_certificate, config.tls_key, config.tls_client_ca)
    return ServerConfig(
        host=config.host,
        port=config.port,
        limits=limits,
        drain_seconds=config.drain_seconds,
        tls=tls,
        tokens=config.auth_tokens,
        health_port=config.health_port,
        max_concurrent_streams=config.max_concurrent_streams,
        max_concurrent_calls=config.max_concurrent_calls,
        max_connection_age=config.max_connection_age,
        keepalive_seconds=config.keepalive_seconds,
        admin=_admin_config(config, engine),
    )


def _admin_config(config: ServeConfig, engine: EngineConfig) -> AdminConfig | None:
    """What admins may do, where it is known who they are, or nobody else can call.

    Raises:
        ConfigurationError: the server would wait for weights that nobody may push.
    """
    asks = config.auth_tokens is not None or config.tls_client_ca is not None
    if not (asks or config.allow_admin or not is_public(config.host)):
        if config.await_weights:
            raise ConfigurationError(
                "await_weights: nobody could push any; AdminService needs tokens, client "
                "certificates, a loopback address or --allow-admin"
            )
        return None
    by_certificate = config.tls_client_ca is not None and config.auth_tokens is None
    return AdminConfig(
        names=frozenset(config.admin_names) if by_certificate else None,
        roots=config.weights_root,
        repositories=frozenset(config.weights_hub),
        stream_timeout=config.weights_stream_timeout,
        engine=engine,
    )


def _pool_settings(config: ServeConfig, workers: int) -> PoolSettings:
    return PoolSettings(
        max_queue_tokens=config.max_queue_tokens,
        max_queue_reply_bytes=config.max_queue_reply_bytes,
        workers=workers,
        await_weights=config.await_weights,
        heartbeat_timeout=config.heartbeat_timeout,
        step_timeout=config.step_timeout,
        reader_timeout=config.reader_timeout,
        audit=AuditSettings(config.self_audit_rate, config.self_audit_threshold),
    )


def _default_name(model: str | None) -> str:
    if model is None:
        return "tiny"
    path = Path(model).expanduser()
    if path.suffix == ".gguf":
        return path.stem
    return path.resolve().name if path.is_dir() else model


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


async def _report_loading(pool: WorkerPool) -> None:
    """Says every few seconds that the model is still loading, and what is being done."""
    seconds = 0
    while True:
        await asyncio.sleep(_REPORT_SECONDS)
        seconds += _REPORT_SECONDS
        if pool.state is PoolState.AWAITING_WEIGHTS:
            continue  # that may take hours, and the log has a line for its beginning
        log.info("still_loading", model=pool.name, stage=pool.stage, seconds=seconds)


async def _announce(server: Server, pool: WorkerPool, config: ServeConfig) -> None:
    """Prints how to use the server once it answers, unless a machine reads what it prints."""
    reports = asyncio.create_task(_report_loading(pool))
    try:
        ready = await server.wait_ready()
    finally:
        reports.cancel()
    if ready:
        info = pool.info
        log.info(
            "ready",
            model=pool.name,
            architecture=info.architecture,
            parameters=info.parameter_count,
            dtype=info.dtype,
            device=info.device,
            deterministic=info.deterministic,
            seconds=round(info.load_seconds, 1),
        )
        if info.tokenizer_reason:
            log.warning("no_tokenizer", model=pool.name, reason=info.tokenizer_reason)
        if config.log_format != "json":
            listen = ListenAddress(
                f"{config.host}:{server.port}",
                tls=config.tls_certificate is not None,
                client_certificates=config.tls_client_ca is not None,
                tokens=config.auth_tokens is not None,
            )
            _print(banner(listen, has_tokenizer=info.tokenizer_json is not None))


def _print(text: str) -> None:
    """Prints for people; a full disk behind standard output is none of the server's business."""
    with contextlib.suppress(OSError):
        print(text, flush=True)
