"""Compiling the C++ kernels: once a machine, and never in a server's way."""

from __future__ import annotations

import pwd
import stat
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from scoring_service.kernels.cpu import build
from scoring_service.kernels.cpu.build import KernelsUnavailableError, compiled_library


@pytest.fixture
def fake_compiler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A compiler that writes its output and counts its runs."""
    script = tmp_path / "fake-c++"
    script.write_text(
        "#!/bin/sh\n"
        'if [ "$1" = --version ]; then echo fake 1.0; exit 0; fi\n'
        f'echo run >> "{tmp_path}/runs"\n'
        'while [ "$1" != -o ]; do shift; done\n'
        'echo library > "$2"\n'
    )
    script.chmod(script.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("CXX", str(script))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path


def runs(folder: Path) -> int:
    return len((folder / "runs").read_text().splitlines())


def test_compiled_once_and_found_again(fake_compiler: Path) -> None:
    library = compiled_library()
    assert library.read_text() == "library\n"
    assert library.parent == fake_compiler / "cache" / "scoring-service"
    assert compiled_library() == library
    assert runs(fake_compiler) == 1
    assert [path.name for path in library.parent.iterdir()] == [library.name], "nothing left over"


def test_processes_that_start_together_compile_once(fake_compiler: Path) -> None:
    script = fake_compiler / "fake-c++"
    script.write_text(script.read_text().replace("echo library", "sleep 0.5\necho library"))
    with ThreadPoolExecutor(3) as pool:
        # Each opens the folder anew, so that threads wait for one another as processes do.
        found = list(pool.map(lambda _: compiled_library(), range(3)))
    assert len(set(found)) == 1
    assert runs(fake_compiler) == 1


def test_another_version_of_torch_is_another_library(
    fake_compiler: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    library = compiled_library()
    monkeypatch.setattr(build.torch, "__version__", "2.99.0")
    assert compiled_library() != library
    assert runs(fake_compiler) == 2


def test_a_cache_that_cannot_be_written(
    fake_compiler: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (fake_compiler / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(fake_compiler / "file"))
    library = compiled_library()
    assert library.is_file()
    assert fake_compiler / "file" not in library.parents
    # A folder of its own each time, closed to others: a library that somebody put there beforehand
    # under a name that can be guessed would be run.
    assert stat.S_IMODE(library.parent.stat().st_mode) == 0o700
    assert compiled_library().parent != library.parent


def test_a_user_without_a_home(fake_compiler: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As platforms start containers that choose numbers of users by themselves."""
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.delenv("HOME")
    monkeypatch.setattr(pwd, "getpwuid", lambda uid: {}[uid])
    assert compiled_library().is_file()


def test_nowhere_to_write(fake_compiler: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A read-only root file system without a place for temporary files."""
    (fake_compiler / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(fake_compiler / "file"))
    monkeypatch.setattr(tempfile, "tempdir", str(fake_compiler / "file"))
    with pytest.raises(KernelsUnavailableError, match="no folder"):
        compiled_library()


def test_a_compiler_that_does_not_start(fake_compiler: Path) -> None:
    (fake_compiler / "fake-c++").write_text("#!/nothing/there\n")
    with pytest.raises(KernelsUnavailableError, match="does not start"):
        compiled_library()


def test_no_compiler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", str(tmp_path / "nothing"))
    with pytest.raises(KernelsUnavailableError, match="no C"):
        compiled_library()


def test_a_compiler_that_fails(fake_compiler: Path) -> None:
    script = fake_compiler / "fake-c++"
    script.write_text('#!/bin/sh\necho "ops.cpp:1: fatal error: no such header" >&2\nexit 1\n')
    with pytest.raises(KernelsUnavailableError, match="no such header"):
        compiled_library()
    assert not list((fake_compiler / "cache" / "scoring-service").iterdir())
