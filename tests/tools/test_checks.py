"""What `make check` asks of the repository is red when one byte of it is wrong."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.served import ROOT

CONTRACT = ("protos", "third_party", "buf.yaml", "docs/api.md", "clients/scoring_client/proto")


def run(folder: Path, *command: str) -> subprocess.CompletedProcess[str]:
    """In a copy, where no compiler of protos is: hashes are asked instead, and nothing fetched."""
    env = {**os.environ, "PROTOC_PYTHON": str(folder / "nowhere")}
    return subprocess.run(
        command, cwd=folder, env=env, capture_output=True, text=True, check=False, timeout=120
    )


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """The contract, what is made of it and what checks both; no git."""
    for name in (
        *CONTRACT,
        "tools",
        "scoring_service/rpc/answers/model_info.py",
        "constraints.txt",
    ):
        source, target = ROOT / name, tmp_path / name
        target.parent.mkdir(parents=True, exist_ok=True)
        (shutil.copytree if source.is_dir() else shutil.copy)(source, target)
    (tmp_path / ".venv").symlink_to(Path(sys.executable).parent.parent)
    return tmp_path


def change(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))


CHECKS = {
    "generate_protos": (sys.executable, "tools/generate_protos.py", "--check"),
    "generate_api_reference": (sys.executable, "tools/generate_api_reference.py", "--check"),
    "check_protos_breaking": ("bash", "tools/check_protos_breaking.sh"),
}


@pytest.mark.parametrize(
    ("check", "path", "old", "new"),
    [
        ("generate_protos", "protos/scoring/v1/score.proto", "// ", "//  "),
        ("generate_protos", "clients/scoring_client/proto/score_pb2.py", "#", "##"),
        ("generate_api_reference", "protos/scoring/v1/score.proto", "// ", "// The "),
        ("generate_api_reference", "docs/api.md", "int32", "int64"),
        # A field of the last revision gone, in a checkout that has no history.
        ("check_protos_breaking", "protos/scoring/v1/model_info.proto", "revision = 14", "r = 14"),
        ("check_protos_breaking", "protos/scoring/v1/model_info.proto", " = 14;", " = 114;"),
    ],
)
def test_a_change_of_the_contract_is_seen(
    copy: Path, check: str, path: str, old: str, new: str
) -> None:
    before = run(copy, *CHECKS[check])
    assert before.returncode == 0, before.stderr
    change(copy / path, old, new)
    assert run(copy, *CHECKS[check]).returncode != 0


def test_a_revision_that_was_not_recorded_is_no_comparison(copy: Path) -> None:
    change(
        copy / "scoring_service/rpc/answers/model_info.py",
        "CONTRACT_REVISION = ",
        "CONTRACT_REVISION = 9",
    )
    done = run(copy, *CHECKS["check_protos_breaking"])
    assert done.returncode == 1
    assert "is missing" in done.stderr


def test_a_version_that_is_not_the_pinned_one_is_seen(copy: Path) -> None:
    before = run(copy, sys.executable, "tools/check_pins.py")
    assert "numpy==" not in before.stderr
    change(copy / "constraints.txt", "\nnumpy==", "\nnumpy==9")
    done = run(copy, sys.executable, "tools/check_pins.py")
    assert done.returncode == 1
    assert re.search(r"^numpy==.*constraints.txt has 9", done.stderr, re.MULTILINE)


class Inline:
    """Compilations in this process, one after another."""

    def __init__(self, _processes: int) -> None:
        pass

    def __enter__(self) -> Inline:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def submit(self, function: Callable[..., Any], *arguments: Any) -> Future[Any]:
        done: Future[Any] = Future()
        done.set_result(function(*arguments))
        return done


@pytest.mark.parametrize(
    ("spills", "shared", "code", "said"),
    [(0, 0, 0, ""), (4, 0, 1, "Hot kernels that spill"), (0, 1 << 20, 1, "More shared memory")],
)
def test_a_kernel_that_spills_fails(
    spills: int,
    shared: int,
    code: int,
    said: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Without compiling any: one of them is said to have that much."""
    pytest.importorskip("triton", reason="Triton is published for Linux only")
    from tools import compile_kernels

    def compiled(number: int, architecture: int) -> tuple[int, int, int]:
        is_it = number == 0 and architecture == compile_kernels.STRICT
        return (255, spills, shared) if is_it else (32, 0, 0)

    monkeypatch.setattr(compile_kernels, "ProcessPoolExecutor", Inline)
    monkeypatch.setattr(compile_kernels, "compile_numbered", compiled)
    assert compile_kernels.main() == code
    assert said in capsys.readouterr().err
