"""The support against vLLM's own arithmetic (fp32, stable sort), which trainers replay."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from scoring_service.kernels import reference
from tests.kernels import cases, oracle, vllm_semantics
from tests.kernels.checks import EDGE

ONE_FILTER = [(1, 1.0), (50, 1.0), (1000, 1.0), (0, 0.1), (0, 0.5), (0, 0.95), (0, 0.999)]
BOTH = [(20, 0.9), (300, 0.3)]


def assert_same_support(x_T_V: oracle.F32, top_k: int, top_p: float) -> None:
    """Equal save for tokens whose cumulative mass is within 4e-6 of 1 - p."""
    x = torch.from_numpy(x_T_V)
    ours = reference.support(x, top_k=top_k, top_p=top_p).numpy()
    theirs = vllm_semantics.support(x, top_k=top_k, top_p=top_p).numpy()
    for x_V, ours_V, theirs_V in zip(x_T_V, ours, theirs, strict=True):
        differs = ours_V != theirs_V
        if differs.any():
            assert not np.any(differs & ~oracle.nucleus_edge(x_V, top_k, top_p, EDGE))


@pytest.mark.parametrize("top_p", [1.0, 0.1, 0.5, 0.9, 0.99])
@pytest.mark.parametrize("top_k", [0, 1, 7, 100, 999])
def test_vocabulary_of_1000(top_k: int, top_p: float) -> None:
    rng = np.random.default_rng(top_k)
    x_T_V = np.stack([cases.random_row(rng, 1000) for _ in range(40)])
    assert_same_support(x_T_V, top_k, cases.promoted(top_p))


@pytest.mark.parametrize(("top_k", "top_p"), ONE_FILTER + BOTH)
@pytest.mark.parametrize("vocab", [49152, 151936])
def test_real_vocabularies(vocab: int, top_k: int, top_p: float) -> None:
    """A smooth row, one as a bf16 head leaves it (full of ties) and a peaked one."""
    rng = np.random.default_rng(vocab)
    kinds = (cases.continuous, cases.bfloat16_like, cases.peaked)
    x_T_V = np.stack([kind(rng, vocab) for kind in kinds])
    assert_same_support(x_T_V, top_k, cases.promoted(top_p))


def test_ties_at_both_edges() -> None:
    """Equal values across the k-th place and across the nucleus's edge, ids told apart."""
    x_V = np.array([1, 2, 1, 3, 1, 2, 1, 1, 0, 2], dtype=np.float32)
    for top_k in range(11):
        for top_p in (0.05, 0.3, 0.5, 0.7, 0.9, 0.97):
            assert_same_support(x_V[None], top_k, cases.promoted(top_p))
