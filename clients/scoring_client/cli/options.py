"""Options that commands of ``scoring-client`` share, and what they print with --json."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter

from scoring_client.cli.jsonable import jsonable
from scoring_client.client import ScoringClient
from scoring_client.errors import InvalidRequestError
from scoring_client.values.inputs import RequestContext
from scoring_client.values.processing import ProcessingDefaults

CONNECT_ATTEMPTS = 2

TextOption = Parameter(allow_leading_hyphen=True)
TextsOption = Parameter(allow_leading_hyphen=True, negative="")


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
    tls: Annotated[bool, Parameter(negative="", env_var="SCORING_TLS")] = False
    """Use TLS, with a server whose certificate a public authority signed."""
    allow_plaintext_token: Annotated[bool, Parameter(negative="")] = False
    """Send the token without TLS to another machine: a service mesh encrypts it."""
    client_certificate: Path | None = None
    """Show this certificate (PEM) to a server that asks for one; with --client-key."""
    client_key: Path | None = None
    """Its key."""
    timeout: float = 600.0
    """Seconds for the whole call."""
    json: Annotated[bool, Parameter(negative="")] = False
    """Print JSON instead of tables."""

    def connection(self) -> dict[str, Any]:
        """Return a client's keyword arguments.

        Raises:
            InvalidRequestError: a file cannot be read.
        """
        return {
            "target": self.target,
            "model": self.model,
            "timeout": self.timeout,
            "token": self.token,
            "root_certificates": _pem("--root-certificates", self.root_certificates),
            "client_certificate": _pem("--client-certificate", self.client_certificate),
            "client_key": _pem("--client-key", self.client_key),
            "tls": self.tls,
            "allow_plaintext_token": self.allow_plaintext_token,
        }


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class Shape:
    """Options that shape the distribution."""

    temperature: float | None = None
    """Divisor of the logits. Unset: 1."""
    top_k: int | None = None
    """Keep this many tokens. Unset: all."""
    top_p: float | None = None
    """Keep this much probability. Unset: all."""
    min_p: float | None = None
    """Keep tokens at least this likely, relative to the likeliest. Unset: all."""
    defaults: ProcessingDefaults | None = None
    """What unset means: neutral, or what the model's generation_config sets."""

    @property
    def truncates(self) -> bool:
        """Whether it may leave tokens out."""
        settings = (self.top_k, self.top_p, self.min_p)
        return self.defaults == "model" or any(setting is not None for setting in settings)

    def options(self) -> Any:
        """Return keyword arguments of a call."""
        return {
            name: getattr(self, name)
            for name in ("temperature", "top_k", "top_p", "min_p", "defaults")
        }


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class Labels:
    """Options by which the server's logs and metrics know a call."""

    tag: Annotated[tuple[str, ...], Parameter(negative="")] = ()
    """Label NAME=VALUE of the call; repeat it for several."""
    request_id: str = ""
    """Id of the call, at most 128 characters. Unset: made here, and named in errors."""

    def context(self) -> RequestContext:
        """Return who asks.

        Raises:
            InvalidRequestError: a tag is none.
        """
        tags: dict[str, str] = {}
        for tag in self.tag:
            name, equals, value = tag.partition("=")
            if not name or not equals:
                raise InvalidRequestError(f"--tag {tag}: expected NAME=VALUE")
            tags[name] = value
        return RequestContext(request_id=self.request_id, tags=tags)


def connect(common: Common) -> ScoringClient:
    """Return a client.

    Raises:
        InvalidRequestError: the options make no sense together.
    """
    with saying_what_is_wrong():
        return ScoringClient(**common.connection(), max_attempts=CONNECT_ATTEMPTS)


@contextmanager
def saying_what_is_wrong() -> Iterator[None]:
    """Have what a client refuses about its arguments told as other bad input is."""
    try:
        yield
    except ValueError as error:
        raise InvalidRequestError(str(error)) from error


def _pem(option: str, path: Path | None) -> bytes | None:
    if path is None:
        return None
    try:
        return path.read_bytes()
    except OSError as error:
        raise InvalidRequestError(f"{option} {path}: {error.strerror}") from error


def print_json(value: Any) -> None:
    """Print a value on one line."""
    print(json.dumps(jsonable(value), ensure_ascii=False, allow_nan=False))
