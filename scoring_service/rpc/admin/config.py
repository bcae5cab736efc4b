"""Who may change what is served, and from where weights may be read."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from scoring_client.proto import admin_pb2 as pb
from scoring_service.errors import Fault, Reason, ServiceError, invalid
from scoring_service.pool.weights.checkpoint import allowed_path, source_config
from scoring_service.types import EngineConfig, EngineInfo


@dataclass(frozen=True, slots=True)
class AdminConfig:
    """Who may change what is served, and from where weights may be read."""

    names: frozenset[str] | None = None
    """Callers' names that have the scope, where no token says so; None = every caller has it."""
    roots: tuple[Path, ...] = ()
    """Folders that weights may be read from."""
    repositories: frozenset[str] = frozenset()
    """Hub repositories that they may."""
    stream_timeout: float = 60.0
    """Seconds of silence after which a stream of weights is aborted."""
    engine: EngineConfig | None = None
    """How the model was loaded; None = checkpoints cannot be."""


def weight_source(
    config: AdminConfig, request: pb.UpdateWeightsRequest, info: EngineInfo
) -> EngineConfig:
    """What to read, for a model that was loaded as `info` says.

    Raises:
        ServiceError: UPDATES_UNSUPPORTED, INVALID_FIELD, SOURCE_NOT_ALLOWED, WEIGHTS_NOT_FOUND.
    """
    if config.engine is None:
        message = "this server does not read checkpoints"
        raise ServiceError(Fault(Reason.UPDATES_UNSUPPORTED, message))
    match request.WhichOneof("source"):
        case "path":
            found = allowed_path(request.path, config.roots)
            return source_config(config.engine, info, found)
        case "hub":
            repository = request.hub.repository
            if repository not in config.repositories:
                message = f"{repository!r} is none of those that --weights-hub names"
                raise ServiceError(Fault(Reason.SOURCE_NOT_ALLOWED, message))
            return source_config(config.engine, info, repository, request.hub.revision or None)
        case _:
            raise invalid("source", "give `path` or `hub`")
