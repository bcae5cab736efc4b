"""The packaged model's samples replayed by a trainer: how far apart the two are, and what replay
is worth. `test_mismatch_on_smollm2.py` measures it on a real model.
"""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch

from scoring_client import Completion, PromptGroup, ScoringClient
from scoring_client.losses import forward_kl, teacher_rows
from scoring_client.replay import mismatch_kl
from scoring_service.models import tiny_model_path
from tests.e2e.served import ROOT, serving
from tests.training.drawn import drawn_from, replayed, trainer_of
from tests.training.mismatch_table import Row, read

MEASURED = ROOT / "benchmarks/results/mismatch.json"


@pytest.mark.parametrize(("dtype", "bound"), [("float32", 1e-6), ("bfloat16", 7e-4)])
def test_the_packaged_model(dtype: str, bound: float) -> None:
    drawn = drawn_from(tiny_model_path(), dtype, n=3)
    on, off = mismatch_kl(*replayed(drawn)), mismatch_kl(*replayed(drawn, truncate=False))
    assert on.tokens > 500
    assert on.k3 < bound
    assert off.k3 >= 2 * on.k3


def test_turns_of_a_text() -> None:
    """The rows of a mask, and the trainer's logits that belong to them, as training.md has it."""
    prompt, ids = [0, 1606], [1086, 367, 520, 41, 300, 17]
    mask = np.array([True, False, True, True, False, True])
    model = trainer_of(tiny_model_path(), "float32")
    with serving("--dtype", "float32") as served, ScoringClient(served.ready) as client:
        group = PromptGroup(prompt, [Completion(ids, rows=mask)])
        ((scores,),) = client.topk_logprobs([group], 8)
    with torch.no_grad():
        logits = model(torch.tensor([prompt + ids])).logits[0]
        # One token after the other, each from a text that ends before it.
        for row, i in enumerate(np.flatnonzero(mask)):
            before = torch.tensor([prompt + ids[:i]])
            plain = model(before).logits[0, -1].log_softmax(0)
            assert scores.logprobs[row] == pytest.approx(float(plain[ids[i]]), abs=1e-4)
    student = logits[len(prompt) - 1 + scores.rows]
    teacher = teacher_rows([scores])
    assert teacher.realised_ids.tolist() == [1086, 520, 41, 17]
    assert abs(float(forward_kl(student, teacher))) < 1e-6
    assert float(forward_kl(logits[len(prompt) + scores.rows], teacher)) > 0.1, "one row too late"


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
