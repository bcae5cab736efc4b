"""The packaged model's samples replayed by a trainer: how far apart the two are, and what replay
is worth. `test_mismatch_on_smollm2.py` measures it on a real model.
"""

from __future__ import annotations

import re

import pytest

from scoring_client.replay import mismatch_kl
from scoring_service.models import tiny_model_path
from tests.e2e.served import ROOT
from tests.training.drawn import drawn_from, replayed
from tests.training.mismatch_table import Row, read

MEASURED = ROOT / "benchmarks/results/mismatch.json"


@pytest.mark.parametrize(("dtype", "bound"), [("float32", 1e-6), ("bfloat16", 7e-4)])
def test_the_packaged_model(dtype: str, bound: float) -> None:
    drawn = drawn_from(tiny_model_path(), dtype, n=3)
    on, off = mismatch_kl(*replayed(drawn)), mismatch_kl(*replayed(drawn, truncate=False))
    assert on.tokens > 500
    assert on.k3 < bound
    assert off.k3 >= 2 * on.k3


@pytest.mark.skipif(not MEASURED.exists(), reason="written by make test-mismatch")
def test_the_pages_figures_are_those_measured() -> None:
    head = r"^\| sampler \| trainer \| tokens .*\n\|[-|]+\|\n((?:\|.*\n)+)"
    found = re.search(head, (ROOT / "docs/training.md").read_text(), re.M)
    assert found
    assert found[1].splitlines() == [row.markdown() for row in read(MEASURED)]


def test_a_row_of_the_page() -> None:
    row = Row("server", "trainer", 7680, 1e-4, 7.31e-4, 7.34e-4, 2.6e-5, 0.1, 0.0281)
    assert row.markdown() == "| server | trainer | 7,680 | (7.3 ± 0.3) · 10⁻⁴ | 2.8 · 10⁻² |"
    alone = Row("a", "b", 3, 0.0, 0.0, 9.97e-12, 1e-13, 0.1, None)
    assert alone.markdown() == "| a | b | 3 | (1.0 ± 0.0) · 10⁻¹¹ | |"
