"""Bearer tokens from a file, each with a name and what it may do."""

from __future__ import annotations

import hashlib
import hmac
import re
import time
from dataclasses import dataclass
from pathlib import Path

import structlog

from scoring_service.errors import ConfigurationError

log = structlog.get_logger(__name__)

SCOPES = frozenset({"score", "admin"})

_MIN_CHARACTERS = 16
_LOOK_SECONDS = 1.0
_NAME = re.compile(r"[A-Za-z0-9._@-]{1,64}")
_DIGEST = "sha256:"
_HASHED = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, slots=True)
class Principal:
    """Who a token belongs to."""

    name: str
    scopes: frozenset[str]


class TokenFile:
    """Lines of `NAME SCOPE[,SCOPE] TOKEN`; a token may be given as `sha256:` and its hex digest.

    Letters of these may be large or small. What begins with `sha256:` is never a token itself: a
    digest with a slip in it would let in whoever has read it.

    Empty lines and those that begin with # say nothing. The file is read again when it changes; one
    that has become unusable leaves the last good tokens in force.

    Args:
        path: of the file.

    Raises:
        ConfigurationError: the file cannot be used; the message names the line, not what is in it.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._looked = time.monotonic()
        self._stamp = self._look()
        self._principals = self._read()
        self._complaint = ""
        """What was last logged of a file that is unusable."""

    def find(self, token: str) -> Principal | None:
        """Whose token it is.

        Digests are compared, in constant time and all of them, so the time it takes tells nothing
        of how much of a token was right, nor of which entry it was.
        """
        self._follow()
        given = hashlib.sha256(token.encode()).digest()
        found = None
        for digest, principal in self._principals:
            if hmac.compare_digest(digest, given):
                found = principal
        return found

    def _follow(self) -> None:
        now = time.monotonic()
        if now - self._looked < _LOOK_SECONDS:
            return
        self._looked = now
        try:
            stamp = self._look()
            if stamp == self._stamp:
                self._complaint = ""
                return
            self._principals = self._read()
        except ConfigurationError as error:
            # It is tried again: rights that are set later change neither time nor size.
            if str(error) != self._complaint:
                self._complaint = str(error)
                log.error("tokens_unusable", message=self._complaint)
            return
        self._stamp, self._complaint = stamp, ""
        log.info("tokens_reloaded", entries=len(self._principals))

    def _look(self) -> tuple[int, int, int]:
        try:
            found = self._path.stat()
        except OSError as error:
            raise ConfigurationError(f"{self._path}: {error.strerror}") from error
        return found.st_mtime_ns, found.st_ino, found.st_size

    def _read(self) -> list[tuple[bytes, Principal]]:
        try:
            lines = self._path.read_text().splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigurationError(f"{self._path} cannot be read") from error
        entries = [
            _entry(line, f"{self._path}, line {number}")
            for number, line in enumerate(lines, 1)
            if line.strip() and not line.lstrip().startswith("#")
        ]
        if not entries:
            raise ConfigurationError(f"{self._path} holds no token")
        return entries


def _entry(line: str, where: str) -> tuple[bytes, Principal]:
    fields = line.split()
    if len(fields) != 3:
        raise ConfigurationError(f"{where}: not NAME SCOPE[,SCOPE] TOKEN")
    name, scopes, token = fields
    if not _NAME.fullmatch(name):
        raise ConfigurationError(f"{where}: a name has 1 to 64 letters, digits or . _ @ -")
    unknown = set(scopes.split(",")) - SCOPES
    if unknown:
        raise ConfigurationError(f"{where}: scopes are {', '.join(sorted(SCOPES))}")
    return _digest(token, where), Principal(name, frozenset(scopes.split(",")))


def _digest(token: str, where: str) -> bytes:
    """SHA-256 of a token, as it is given or as the file has it."""
    lowered = token.lower()
    if lowered.startswith(_DIGEST):
        hexadecimal = lowered.removeprefix(_DIGEST)
        if not _HASHED.fullmatch(hexadecimal):
            raise ConfigurationError(f"{where}: {_DIGEST} is followed by 64 hex digits")
        return bytes.fromhex(hexadecimal)
    if len(token) < _MIN_CHARACTERS:
        raise ConfigurationError(f"{where}: a token has at least {_MIN_CHARACTERS} characters")
    return hashlib.sha256(token.encode()).digest()
