"""What the tools fetch is kept when it is what they were written for, and not otherwise."""

from __future__ import annotations

import hashlib
import io
from pathlib import Path

import pytest

from tools.wheels import is_there, keep

CONTENT = b"a program"
SHA256 = hashlib.sha256(CONTENT).hexdigest()


@pytest.mark.parametrize("executable", [True, False])
def test_the_right_file_is_kept(tmp_path: Path, executable: bool) -> None:
    scratch, kept = tmp_path / "scratch", tmp_path / "program"
    scratch.mkdir()
    assert not is_there(kept, SHA256)
    keep(io.BytesIO(CONTENT), kept, SHA256, scratch, executable=executable)
    assert kept.read_bytes() == CONTENT
    assert bool(kept.stat().st_mode & 0o100) is executable
    assert is_there(kept, SHA256)
    kept.write_bytes(CONTENT[:-1])
    assert not is_there(kept, SHA256), "it was cut since"


def test_another_file_is_not_kept(tmp_path: Path) -> None:
    scratch, kept = tmp_path / "scratch", tmp_path / "program"
    scratch.mkdir()
    with pytest.raises(ValueError, match=f"program has SHA-256 .*, expected {SHA256}"):
        keep(io.BytesIO(CONTENT + b"!"), kept, SHA256, scratch)
    assert not kept.exists()
