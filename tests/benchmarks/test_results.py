"""Every committed result says when, of which commit and on what machine it was measured."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.e2e.served import ROOT

FILES = sorted((ROOT / "benchmarks/results").glob("*.json"))
ORIGIN = frozenset(("commit", "date", "machine"))


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_a_result_says_where_it_is_from(file: Path) -> None:
    found = json.loads(file.read_text())
    # Runs of one file that were measured one by one say it each.
    runs = list(found.values()) if file.stem == "kills" else [found]
    assert not {name for name in ORIGIN for run in runs if not run.get(name)}
