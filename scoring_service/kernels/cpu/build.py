"""Compiles the C++ kernels once a machine, and keeps the result."""

from __future__ import annotations

import atexit
import contextlib
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import torch

_SOURCES = Path(__file__).parent
_TIMEOUT = 300.0
_CAPABILITIES = {
    "AVX512": ["-mavx512f", "-mavx512bw", "-mavx512vl", "-mavx512dq", "-mfma", "-mf16c"],
    "AVX2": ["-mavx2", "-mfma", "-mf16c"],
}
"""torch's name of what a processor can do -> what a compiler has to be told for it."""


class KernelsUnavailableError(Exception):
    """Why there are no C++ kernels on this machine."""


def compiled_library() -> Path:
    """The shared library, compiled now unless an earlier process did.

    Kept under `$XDG_CACHE_HOME/scoring-service` (`~/.cache/scoring-service`); where that cannot be
    written, in a folder of this process's own. The name holds a hash of the sources, the compiler,
    its flags and torch's version.

    Raises:
        KernelsUnavailableError: there is no compiler, or it fails.
    """
    if sys.platform != "linux":
        raise KernelsUnavailableError(f"they are not built on {sys.platform}")
    compiler = shutil.which(os.environ.get("CXX", "c++"))
    if compiler is None:
        raise KernelsUnavailableError("there is no C++ compiler (c++, or what CXX names)")
    command = [compiler, *_flags()]
    name = f"cpu-{_fingerprint(compiler, command)}.so"
    for make_folder in (_shared_folder, _private_folder):
        try:
            library = make_folder() / name
            with _alone(library.parent):
                if not library.is_file():
                    _compile_to(library, command)
        except OSError:
            continue
        return library
    raise KernelsUnavailableError("there is no folder to keep them in")


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Workers start side by side: one compiles, and the others wait and find what it made."""
    # Not on Windows, where there are no kernels to compile either.
    import fcntl

    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        # Where the file system knows no locks, each compiles for itself.
        with contextlib.suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _compile_to(library: Path, command: list[str]) -> None:
    """The library appears whole or not at all."""
    with tempfile.NamedTemporaryFile(dir=library.parent, suffix=".so", delete=False) as partial:
        pass
    try:
        _compile(command, Path(partial.name))
        Path(partial.name).replace(library)
    finally:
        Path(partial.name).unlink(missing_ok=True)


def _shared_folder() -> Path:
    try:
        cache = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser()
    except RuntimeError as error:  # a user whom nobody has put down
        raise FileNotFoundError(str(error)) from error
    folder = cache / "scoring-service"
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    return folder


def _private_folder() -> Path:
    """The last resort has a name that nobody can guess.

    Whoever can make a library's folder beforehand can run code here.
    """
    folder = Path(tempfile.mkdtemp(prefix="scoring-service-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


def _flags() -> list[str]:
    capability = torch.backends.cpu.get_cpu_capability()
    torch_root = Path(torch.__file__).parent
    instructions = [*_CAPABILITIES.get(capability, [])]
    if capability == "AVX512" and torch.cpu._is_avx512_bf16_supported():
        instructions.append("-mavx512bf16")
    macros = ["-DCPU_CAPABILITY=DEFAULT", "-DCPU_CAPABILITY_DEFAULT"]
    if instructions:
        macros = [f"-DCPU_CAPABILITY={capability}", f"-DCPU_CAPABILITY_{capability}"]
    return [
        *("-std=c++20", "-O3", "-fPIC", "-shared", "-fopenmp", "-w"),
        "-ffp-contract=off",  # a product and a sum are rounded apart unless the code says fmadd
        *(
            "-DAT_PARALLEL_OPENMP=1",
            f"-D_GLIBCXX_USE_CXX11_ABI={int(torch.compiled_with_cxx11_abi())}",
        ),
        *macros,
        *instructions,
        f"-I{torch_root / 'include'}",
        f"-I{torch_root / 'include' / 'torch' / 'csrc' / 'api' / 'include'}",
        f"-L{torch_root / 'lib'}",
    ]


def _fingerprint(compiler: str, command: list[str]) -> str:
    try:
        version = subprocess.run(
            [compiler, "--version"], capture_output=True, text=True, check=False, timeout=_TIMEOUT
        ).stdout
    except (OSError, subprocess.TimeoutExpired) as error:
        raise KernelsUnavailableError(f"the compiler does not start: {error}") from error
    facts = hashlib.sha256("\n".join([*command, version, torch.__version__]).encode())
    for source in sorted(_SOURCES.glob("*.[ch]*")):
        facts.update(source.read_bytes())
    return facts.hexdigest()[:20]


def _compile(command: list[str], library: Path) -> None:
    try:
        subprocess.run(
            [*command, str(_SOURCES / "ops.cpp"), "-o", str(library), "-ltorch_cpu", "-lc10"],
            capture_output=True,
            text=True,
            check=True,
            timeout=_TIMEOUT,
        )
    except subprocess.CalledProcessError as error:
        lines = [line for line in error.stderr.splitlines() if "error" in line]
        reason = lines[0][:200] if lines else f"exit code {error.returncode}"
        raise KernelsUnavailableError(f"the compiler failed: {reason}") from error
    except (OSError, subprocess.TimeoutExpired) as error:
        raise KernelsUnavailableError(f"the compiler failed: {error}") from error
