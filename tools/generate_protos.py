#!/usr/bin/env python3
"""Generate the Python code of ``protos/`` into ``clients/scoring_client/proto/``.

    python tools/generate_protos.py            rewrite the committed code
    python tools/generate_protos.py --check    fail when it is stale; write nothing

Generated code refuses to load under a protobuf or grpcio older than the compiler that made it, so
the compiler here is an old one (protoc 25, which comes inside grpcio-tools 1.62): its output loads
under protobuf 5.29 to 7.x and every grpcio that the client supports. It lives in an environment of
its own under ``build/``, away from the newer protobuf of ``.venv``.
"""

from __future__ import annotations

import argparse
import difflib
import hashlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PROTO_ROOT = ROOT / "protos"
THIRD_PARTY_ROOT = ROOT / "third_party" / "googleapis"
OUTPUT_DIR = ROOT / "clients" / "scoring_client" / "proto"
PROTO_PACKAGE_DIR = "scoring/v1"
PYTHON_PACKAGE = "scoring_client.proto"
MANIFEST_NAME = "generated.sha256"

TOOLCHAIN_DIR = ROOT / "build" / "protoc-toolchain"
# Installed without their dependencies: protoc needs none, and the stub writer only protobuf.
TOOLCHAIN = (
    "grpcio-tools==1.62.3",
    "mypy-protobuf==3.6.0",
    "protobuf==4.25.8",
)
# The last Python that grpcio-tools 1.62.3 has wheels for.
NEWEST_TOOLCHAIN_PYTHON = (3, 12)

INIT_PY = '''\
"""Code generated from ``protos/`` by ``make protos``. Do not edit it by hand."""
'''


class ToolchainUnavailableError(Exception):
    """No interpreter on this machine can run the pinned protobuf compiler."""


def find_toolchain_python() -> str:
    """Return a Python that grpcio-tools 1.62.3 has a wheel for.

    Raises:
        ToolchainUnavailableError: none was found.
    """
    named = os.environ.get("PROTOC_PYTHON")
    candidates = [named] if named else [sys.executable, "python3.12", "python3.11", "python3.10"]
    probe = "import sys; print(*sys.version_info[:2])"
    for candidate in candidates:
        if shutil.which(candidate) is None:
            continue
        answer = subprocess.run(
            [candidate, "-c", probe], capture_output=True, text=True, check=False
        )
        if (
            answer.returncode == 0
            and (3, 9) <= tuple(map(int, answer.stdout.split())) <= NEWEST_TOOLCHAIN_PYTHON
        ):
            return candidate
    raise ToolchainUnavailableError(
        f"no Python 3.9 to 3.12 found (tried {', '.join(candidates)}). The protobuf compiler of "
        "grpcio-tools 1.62.3 has no wheel for newer ones; install Python 3.12 or 3.11, or name it: "
        "PROTOC_PYTHON=/path/to/python3.12 make protos"
    )


def ensure_toolchain() -> Path:
    """Return the toolchain's ``bin`` folder, made on first use.

    Raises:
        ToolchainUnavailableError: no suitable Python was found.
        subprocess.CalledProcessError: the packages could not be installed.
    """
    bin_dir = TOOLCHAIN_DIR / "bin"
    stamp = TOOLCHAIN_DIR / "toolchain.txt"
    wanted = "\n".join(TOOLCHAIN)
    if stamp.exists() and stamp.read_text() == wanted:
        return bin_dir
    python = find_toolchain_python()
    print(
        f"Installing {', '.join(TOOLCHAIN)} into {TOOLCHAIN_DIR.relative_to(ROOT)} (about 4 MB)",
        file=sys.stderr,
    )
    subprocess.run([python, "-m", "venv", "--clear", str(TOOLCHAIN_DIR)], check=True)
    pip_install = [str(bin_dir / "python"), "-m", "pip", "install", "--quiet", "--no-deps"]
    subprocess.run([*pip_install, "--only-binary=:all:", *TOOLCHAIN], check=True, stdout=sys.stderr)
    stamp.write_text(wanted)
    return bin_dir


def proto_sources() -> list[Path]:
    return sorted((PROTO_ROOT / PROTO_PACKAGE_DIR).glob("*.proto"))


def compile_protos(bin_dir: Path, destination: Path) -> None:
    """Run protoc; its output lands under ``destination/scoring/v1``."""
    subprocess.run(
        [
            str(bin_dir / "python"), "-m", "grpc_tools.protoc",
            f"--proto_path={PROTO_ROOT}",
            f"--proto_path={THIRD_PARTY_ROOT}",
            f"--plugin=protoc-gen-mypy_grpc={bin_dir / 'protoc-gen-mypy_grpc'}",
            f"--python_out={destination}",
            f"--pyi_out={destination}",
            f"--grpc_python_out={destination}",
            f"--mypy_grpc_out=quiet:{destination}",
            *(str(path.relative_to(PROTO_ROOT)) for path in proto_sources()),
        ],
        check=True,
    )  # fmt: skip


def into_python_package(code: str) -> str:
    """Make the imports and module names of generated code those of ``PYTHON_PACKAGE``.

    Descriptors keep their file names (``scoring/v1/...``): those belong to the contract.
    """
    proto_package = re.escape(PROTO_PACKAGE_DIR.replace("/", "."))
    code = re.sub(rf"\bfrom {proto_package} import", f"from {PYTHON_PACKAGE} import", code)
    return re.sub(rf"\b{proto_package}\.(\w+_pb2(?:_grpc)?)\b", rf"{PYTHON_PACKAGE}.\1", code)


def generate() -> dict[str, str]:
    """Return the text of every file of the generated package, by name.

    Raises:
        ToolchainUnavailableError: no suitable Python was found.
        subprocess.CalledProcessError: protoc refused the sources (it has said why on stderr).
    """
    bin_dir = ensure_toolchain()
    with tempfile.TemporaryDirectory() as scratch:
        compile_protos(bin_dir, Path(scratch))
        outputs = sorted((Path(scratch) / PROTO_PACKAGE_DIR).iterdir())
        files = {path.name: into_python_package(path.read_text()) for path in outputs}
    # protoc and its plugin write service files, with nothing but imports, for sources without one.
    for source in proto_sources():
        if not re.search(r"^service\s", source.read_text(), re.MULTILINE):
            files.pop(f"{source.stem}_pb2_grpc.py", None)
            files.pop(f"{source.stem}_pb2_grpc.pyi", None)
    files["__init__.py"] = INIT_PY
    files[MANIFEST_NAME] = manifest(files)
    return files


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def manifest(files: dict[str, str]) -> str:
    """Return ``sha256sum``-style lines for the sources, this script and what they generate."""
    hashes = {
        str(path.relative_to(ROOT)): sha256(path.read_bytes())
        for path in [Path(__file__).resolve(), *proto_sources()]
    }
    package = OUTPUT_DIR.relative_to(ROOT)
    hashes |= {
        str(package / name): sha256(text.encode())
        for name, text in files.items()
        if name != MANIFEST_NAME
    }
    return "".join(f"{digest}  {path}\n" for path, digest in sorted(hashes.items()))


def committed() -> dict[str, str]:
    if not OUTPUT_DIR.is_dir():
        return {}
    return {path.name: path.read_text() for path in sorted(OUTPUT_DIR.iterdir()) if path.is_file()}


def write(files: dict[str, str]) -> None:
    OUTPUT_DIR.mkdir(parents=True, exist_ok=True)
    for name in committed().keys() - files.keys():
        (OUTPUT_DIR / name).unlink()
    for name, text in files.items():
        (OUTPUT_DIR / name).write_text(text)
    print(f"{len(files)} files in {OUTPUT_DIR.relative_to(ROOT)}")


def check() -> int:
    """Compare the committed code with what the sources generate; return the exit status."""
    found = committed()
    try:
        wanted = generate()
    except ToolchainUnavailableError as error:
        print(f"{error}\nChecking the recorded hashes instead.", file=sys.stderr)
        without_manifest = {name: text for name, text in found.items() if name != MANIFEST_NAME}
        wanted = without_manifest | {MANIFEST_NAME: manifest(without_manifest)}
    if found == wanted:
        print("Generated code is up to date.")
        return 0
    for name in sorted(found.keys() | wanted.keys()):
        old, new = found.get(name, ""), wanted.get(name, "")
        diff = difflib.unified_diff(
            old.splitlines(), new.splitlines(), f"committed/{name}", f"fresh/{name}", "", "", 0, ""
        )
        for line in list(diff)[:6]:
            print(line[:200], file=sys.stderr)
    print(
        f"{OUTPUT_DIR.relative_to(ROOT)} is stale: run `make protos` and commit the result.",
        file=sys.stderr,
    )
    return 1


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument(
        "--check", action="store_true", help="fail when the committed code is stale; write nothing"
    )
    arguments = parser.parse_args()
    if not proto_sources():
        print(f"no .proto files in {PROTO_ROOT / PROTO_PACKAGE_DIR}", file=sys.stderr)
        return 1
    try:
        if arguments.check:
            return check()
        write(generate())
    except ToolchainUnavailableError as error:
        print(error, file=sys.stderr)
        return 1
    except subprocess.CalledProcessError as error:
        # The command has said on stderr what is wrong; a traceback of this script adds nothing.
        print(f"failed with status {error.returncode}: {error.cmd[0]}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
