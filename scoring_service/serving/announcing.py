"""What is said while a model loads, and once it answers."""

from __future__ import annotations

import asyncio
import contextlib

import structlog

from scoring_service.banner import ListenAddress, banner
from scoring_service.config import ServeConfig
from scoring_service.pool.pool import WorkerPool
from scoring_service.pool.workers.readiness import PoolState
from scoring_service.rpc.server import Server

log = structlog.get_logger(__name__)

_REPORT_SECONDS = 10


async def announce(server: Server, pool: WorkerPool, config: ServeConfig) -> None:
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


async def _report_loading(pool: WorkerPool) -> None:
    """Says every few seconds that the model is still loading, and what is being done."""
    seconds = 0
    while True:
        await asyncio.sleep(_REPORT_SECONDS)
        seconds += _REPORT_SECONDS
        if pool.state is PoolState.AWAITING_WEIGHTS:
            continue  # that may take hours, and the log has a line for its beginning
        log.info("still_loading", model=pool.name, stage=pool.stage, seconds=seconds)


def _print(text: str) -> None:
    """Prints for people; a full disk behind standard output is none of the server's business."""
    with contextlib.suppress(OSError):
        print(text, flush=True)
