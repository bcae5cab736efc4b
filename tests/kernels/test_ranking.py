"""Rank, top-K ids, and that the two always agree."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from scoring_service.kernels import reference
from tests.kernels import cases, oracle
from tests.kernels.checks import assert_ranks

TIED_ROWS = st.lists(
    st.sampled_from([-math.inf, -1.0, -0.0, 0.0, 2.0]), min_size=1, max_size=40
).map(lambda row: np.array(row, dtype=np.float32))


@given(x_V=TIED_ROWS)
@settings(max_examples=200)
def test_rank_of_every_token_of_tied_rows(x_V: oracle.F32) -> None:
    assert_ranks(reference.rank, x_V, range(len(x_V)))


@pytest.mark.parametrize("kind", cases.KINDS)
def test_rank_of_longer_rows(kind: object) -> None:
    rng = np.random.default_rng(3)
    x_V = kind(rng, 3001)  # type: ignore[operator]
    assert_ranks(reference.rank, x_V, rng.integers(3001, size=40).tolist())


@given(x_V=TIED_ROWS, limit=st.integers(1, 45))
@settings(max_examples=200)
def test_rank_below_a_token_id_limit(x_V: oracle.F32, limit: int) -> None:
    """Only ids below the limit count; a token at or past it has rank 0 (score.proto)."""
    limit = min(limit, len(x_V))
    ids = torch.arange(len(x_V))
    got = reference.rank(torch.from_numpy(x_V).expand(len(x_V), -1), ids, token_id_limit=limit)
    assert got.tolist() == [oracle.rank(x_V, int(i), limit) for i in ids]
    listed = reference.top_k_ids(torch.from_numpy(x_V)[None, :limit], limit)[0]
    assert got[listed].tolist() == list(range(1, limit + 1))


@given(x_V=TIED_ROWS)
@settings(max_examples=100)
def test_rank_is_at_most_k_exactly_for_the_listed(x_V: oracle.F32) -> None:
    """For every K and every token, and the list is in the order of its ranks."""
    x = torch.from_numpy(x_V)
    ranks = reference.rank(x.expand(len(x_V), -1), torch.arange(len(x_V)))
    for k in range(1, len(x_V) + 1):
        listed = reference.top_k_ids(x[None], k)[0]
        assert ranks[listed].tolist() == list(range(1, k + 1))
        assert set(torch.nonzero(ranks <= k)[:, 0].tolist()) == set(listed.tolist())


@pytest.mark.parametrize("k", [1, 2, 3, 17, 256, 1999, 2000])
def test_top_k_against_a_full_stable_sort(k: int) -> None:
    """Every kind of row in one tile, so that crowded rows stand beside others."""
    rng = np.random.default_rng(k)
    x_T_V = np.stack([cases.random_row(rng, 2000) for _ in range(24)])
    got = reference.top_k_ids(torch.from_numpy(x_T_V), k).numpy()
    np.testing.assert_array_equal(got, [oracle.top_k_ids(x_V, k) for x_V in x_T_V])


@pytest.mark.parametrize("k", [1, 20, 1024, 8192])
def test_top_k_of_a_real_vocabulary(k: int) -> None:
    rng = np.random.default_rng(9)
    x_T_V = np.stack([kind(rng, 49152) for kind in cases.KINDS])
    got = reference.top_k_ids(torch.from_numpy(x_T_V), k).numpy()
    np.testing.assert_array_equal(got, [oracle.top_k_ids(x_V, k) for x_V in x_T_V])


def test_greedy_takes_the_lowest_of_equals() -> None:
    """Rank 1, the head of the top-K list and the greedy token are one token."""
    rng = np.random.default_rng(4)
    x_T_V = np.stack([cases.random_row(rng, 300) for _ in range(60)])
    got = reference.greedy(torch.from_numpy(x_T_V)).tolist()
    assert got == [int(oracle.best_first(x_V)[0]) for x_V in x_T_V]
