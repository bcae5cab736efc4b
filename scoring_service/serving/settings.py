"""From the server's settings to those of each room."""

from __future__ import annotations

from pathlib import Path

from scoring_service.config import ServeConfig
from scoring_service.errors import ConfigurationError
from scoring_service.pool.settings import PoolSettings
from scoring_service.pool.streams.self_audit import AuditSettings
from scoring_service.rpc.admin.config import AdminConfig
from scoring_service.rpc.models import RequestLimits
from scoring_service.rpc.server import ServerConfig
from scoring_service.rpc.tls import TlsFiles, is_public
from scoring_service.types import EngineConfig


def engine_config(source: str, config: ServeConfig) -> EngineConfig:
    """How a worker loads the model and computes.

    Args:
        source: of the model.
        config: of the server.
    """
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


def server_config(config: ServeConfig, engine: EngineConfig) -> ServerConfig:
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
        limits=_limits(config),
        drain_seconds=config.drain_seconds,
        tls=tls,
        tokens=config.auth_tokens,
        health_port=config.health_port,
        max_concurrent_streams=config.max_concurrent_streams,
        max_concurrent_calls=config.max_concurrent_calls,
        max_connection_age=config.max_connection_age,
        keepalive_seconds=config.keepalive_seconds,
        admin=admin_config(config, engine),
    )


def admin_config(config: ServeConfig, engine: EngineConfig) -> AdminConfig | None:
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


def _limits(config: ServeConfig) -> RequestLimits:
    return RequestLimits(
        max_request_bytes=config.max_request_bytes,
        max_queue_tokens=config.max_queue_tokens,
        preferred_tokens_per_call=config.preferred_tokens_per_call,
        max_k=config.max_k,
        max_priority=config.max_priority,
    )


def pool_settings(config: ServeConfig, workers: int) -> PoolSettings:
    """How many workers share which queue, and when one is taken for dead."""
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


def default_name(model: str | None) -> str:
    """What a model is called where nobody says; None is the packaged one."""
    if model is None:
        return "tiny"
    path = Path(model).expanduser()
    if path.suffix == ".gguf":
        return path.stem
    return path.resolve().name if path.is_dir() else model
