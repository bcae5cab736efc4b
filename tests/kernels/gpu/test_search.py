"""The search for a value of a row: how often it reads the row, and which value it ends at."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from scoring_service.kernels import reference
from scoring_service.kernels.gpu import search
from scoring_service.kernels.gpu.tile import TritonTile
from tests.kernels.cases import Setting, promoted
from tests.kernels.gpu.conftest import INTERPRETED
from tests.kernels.gpu.device import DEVICE
from tests.kernels.gpu.support import assert_like_reference

VOCAB = 151_936

WIDE = 10_000
"""Wider than the list on which a search goes on: it begins on the row."""


@pytest.fixture
def row_passes(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Gets the length of every row that is read once more, in the interpreter."""
    lengths: list[int] = []
    narrow = search.narrow

    def noting(source: Any, length: Any, *rest: Any) -> Any:
        lengths.append(int(length.handle.data[0]) if hasattr(length, "handle") else int(length))
        return narrow(source, length, *rest)

    monkeypatch.setattr(search, "narrow", noting)
    return lengths


@pytest.mark.skipif(not INTERPRETED, reason="passes are counted in the interpreter")
@pytest.mark.parametrize("spread", [0.5, 2.5])
@pytest.mark.parametrize("k", [1, 50, 1000, 20_000])
def test_a_wide_top_k_under_a_nucleus_is_searched_in_few_passes(
    k: int, spread: float, row_passes: list[int]
) -> None:
    """Four of them leave few enough tokens to list: what lies far below the best costs none. A
    top-k that fits a list costs none at all.
    """
    values = np.random.default_rng(k).normal(size=(1, VOCAB)) * spread
    x_T_V = torch.from_numpy(values.astype(np.float32))
    assert_like_reference(x_T_V, [Setting(top_k=k, top_p=promoted(0.9))])
    if k == 20_000:
        assert 2 <= row_passes.count(VOCAB) <= 9
    else:
        assert row_passes == []


def row_of(kind: str) -> np.ndarray:
    """Rows whose K-th value lies where the first pivots are not."""
    rng = np.random.default_rng(5)
    x_V = rng.normal(size=WIDE)
    if kind == "far below the best":
        x_V = x_V - 1000
        x_V[:3] = [0.0, -1.0, 5.0]
    elif kind == "at every scale":
        x_V = -(10 ** rng.uniform(-30, 37.5, size=WIDE))
    elif kind == "banned":
        x_V[rng.random(WIDE) < 0.9] = -np.inf
    elif kind == "equal":
        x_V[:] = -700.0
        x_V[7] = 3.0
    elif kind == "huge":
        x_V = x_V * 1e37
    elif kind == "beyond the pivots":
        x_V = np.where(rng.random(WIDE) < 0.5, 3.3e38, -3.3e38)
    return x_V.astype(np.float32)


@pytest.mark.parametrize(
    "kind",
    ["far below the best", "at every scale", "banned", "equal", "huge", "beyond the pivots"],
)
def test_values_that_lie_anywhere(kind: str) -> None:
    """Pivots decide how long a search takes and nothing else."""
    settings = [
        Setting(top_k=1), Setting(top_k=4), Setting(top_k=5000), Setting(top_k=WIDE - 1),
        Setting(top_k=900, top_p=promoted(0.7)), Setting(top_p=promoted(0.3)),
    ]  # fmt: skip
    x_T_V = torch.from_numpy(row_of(kind)).to(DEVICE).repeat(len(settings), 1)
    assert_like_reference(x_T_V, settings)
    # Of as many as this the groups' maxima are no bound: the row itself is searched.
    ids_T_K = TritonTile(x_T_V[:1]).top_k_ids(320, WIDE)
    assert torch.equal(ids_T_K, reference.top_k_ids(x_T_V[:1], 320))


@pytest.mark.parametrize("k", [5, 62, 191])
@pytest.mark.parametrize("best", [2e5, -3e6])
def test_values_that_are_neighbours(best: float, k: int) -> None:
    """A few floats apart, as logits of a temperature near 0 may be: pivots between them, evenly
    spaced as x, would be rounded out of order, and a list be another or have too few.
    """
    rng = np.random.default_rng(k)
    rows, vocab = 24, 400
    tops_T_1 = (best * rng.uniform(0.6, 1.4, size=(rows, 1))).astype(np.float32)
    steps_T_V = rng.integers(0, rng.integers(3, 16, size=(rows, 1)), size=(rows, vocab))
    x_T_V = tops_T_1 - np.spacing(np.abs(tops_T_1)) * steps_T_V.astype(np.float32)
    logits_T_V = torch.from_numpy(x_T_V).to(DEVICE)
    ids_T_K = TritonTile(logits_T_V).top_k_ids(k, vocab)
    assert torch.equal(ids_T_K, reference.top_k_ids(logits_T_V, k))
