"""Which code computes: its bits may be others after any change of it."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from functools import cache
from pathlib import Path

from scoring_service import engine, kernels

_SOURCES = (".py", ".h", ".cpp")


@cache
def code_digest() -> str:
    """SHA-256 (hex) of the engine and its kernels, as they lie on disk when it is asked first."""
    return digest_of(folder for room in (engine, kernels) for folder in map(Path, room.__path__))


def digest_of(folders: Iterable[Path]) -> str:
    """SHA-256 (hex) over the sources in some folders: the paths in there, lengths and bytes."""
    digest = hashlib.sha256()
    for folder in folders:
        for path in sorted(folder.rglob("*")):
            if path.suffix in _SOURCES:
                content = path.read_bytes()
                digest.update(f"{path.relative_to(folder)} {len(content)}\n".encode())
                digest.update(content)
    return digest.hexdigest()
