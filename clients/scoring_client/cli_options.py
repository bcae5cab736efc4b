"""Options that every command of ``scoring-client`` has, and what it prints with --json."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter

from scoring_client.jsonable import jsonable


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class Common:
    """Options of every command."""

    target: Annotated[str, Parameter(env_var="SCORING_TARGET")] = "localhost:50051"
    """Host and port of the server."""
    model: str = ""
    """Model to ask; by default the only one served."""
    token: Annotated[str | None, Parameter(env_var="SCORING_TOKEN", show_default=False)] = None
    """Sent as `authorization: Bearer …`."""
    root_certificates: Path | None = None
    """Use TLS, with a server whose certificate those in this PEM file sign."""
    client_certificate: Path | None = None
    """Show this certificate (PEM) to a server that asks for one; with --client-key."""
    client_key: Path | None = None
    """Its key."""
    timeout: float = 600.0
    """Seconds for the whole call."""
    json: Annotated[bool, Parameter(negative="")] = False
    """Print JSON instead of tables."""


def print_json(value: Any) -> None:
    """Print a value on one line."""
    print(json.dumps(jsonable(value), ensure_ascii=False, allow_nan=False))
