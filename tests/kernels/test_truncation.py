"""Support, kept mass and processed log-probs against the float64 oracle."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from scoring_service.kernels import reference
from tests.kernels import cases, oracle
from tests.kernels.checks import assert_supports, assert_values

BLOCKS, CASES = 10, 50
"""500 random settings in ten tests."""


def processed(
    x_T_V: oracle.F32, keep_T_V: oracle.Mask, ids_T_C: oracle.Ids
) -> tuple[np.ndarray, np.ndarray]:
    """Log kept masses [T] and processed log-probs [T, C] as a caller composes them."""
    x, keep, ids = (torch.from_numpy(array) for array in (x_T_V, keep_T_V, ids_T_C))
    log_z = reference.logsumexp(x)
    log_kept = reference.log_kept_mass(x, log_z, keep)
    columns = [
        reference.processed_logprobs_at(x, log_z, keep, log_kept, ids[:, c])
        for c in range(ids.shape[1])
    ]
    return log_kept.numpy(), torch.stack(columns, dim=1).numpy()


def some_ids(rng: np.random.Generator, keep_V: oracle.Mask) -> oracle.Ids:
    """Half of them from the support, the others from anywhere."""
    inside = rng.choice(np.flatnonzero(keep_V), size=8)
    return np.concatenate([inside, rng.integers(len(keep_V), size=8)])


def assert_processed(x_T_V: oracle.F32, keep_T_V: oracle.Mask, ids_T_C: oracle.Ids) -> None:
    """Kept mass and values within 1e-5 of the oracle's, on this support."""
    log_kept_T, got_T_C = processed(x_T_V, keep_T_V, ids_T_C)
    for row, (x_V, keep_V) in enumerate(zip(x_T_V, keep_T_V, strict=True)):
        assert abs(math.expm1(log_kept_T[row] - oracle.log_kept_mass(x_V, keep_V))) <= 1e-6
        assert log_kept_T[row] <= 0
        assert_values(got_T_C[row], oracle.processed_logprobs(x_V, keep_V)[ids_T_C[row]])


@pytest.mark.parametrize("block", range(BLOCKS))
def test_random_settings(block: int) -> None:
    """Supports, their sizes, kept masses and values, over every kind of row and setting.

    Where the supports differ in tokens at the nucleus's edge (the settings seek such edges),
    values are compared on the reference's support; that must stay rare, or it would be a hole.
    """
    rng = np.random.default_rng(1000 + block)
    excluded = 0
    for _ in range(CASES):
        vocab = int(rng.choice([1, 2, 3, 8, 50, 257, 1000, 2048]))
        setting = cases.random_setting(rng, vocab)
        logits = np.stack([cases.random_row(rng, vocab) for _ in range(3)])
        x_T_V = reference.scale(torch.from_numpy(logits), setting.temperature).numpy()
        np.testing.assert_array_equal(x_T_V, oracle.scaled(logits, setting.temperature))
        keep_T_V = assert_supports(reference.support, x_T_V, setting)
        want_T_V = np.stack([oracle.support(x_V, **setting.truncation) for x_V in x_T_V])
        excluded += int(np.any(keep_T_V != want_T_V, axis=1).sum())
        assert_processed(x_T_V, keep_T_V, np.stack([some_ids(rng, k) for k in keep_T_V]))
        with_label_T_V = keep_T_V.copy()
        realised_T = rng.integers(vocab, size=3)
        with_label_T_V[np.arange(3), realised_T] = True
        assert_processed(x_T_V, with_label_T_V, realised_T[:, None])
    assert excluded <= 3 * CASES // 20


@pytest.mark.parametrize("seed", range(20))
def test_the_edge_is_decided_in_exact_arithmetic(seed: int) -> None:
    """1 - p is put a hair above or below the cumulative mass of a token chosen at random.

    The hair is 1e-8; only the masses' own unit, 2**-40 a token, may separate the two edges.
    """
    rng = np.random.default_rng(seed)
    vocab = 2000
    for _ in range(10):
        x_V = cases.random_row(rng, vocab)
        top_k = int(rng.choice([0, 3, 500]))
        shares = oracle.cumulative_shares(x_V, top_k)[1]
        share = rng.choice(shares[shares < 1 - 1e-6]) if len(shares) > 1 else 0.5
        for hair in (-1e-8, 1e-8):
            setting = cases.Setting(top_k=top_k, top_p=min(1.0 - (share + hair), 1.0 - 1e-12))
            assert_supports(reference.support, x_V[None], setting, within=vocab * 2.0**-40)


@pytest.mark.parametrize("top_p", [1e-6, 1e-12, 1e-20, 1e-38])
def test_the_best_token_is_always_kept(top_p: float) -> None:
    """However small p: one token, of equal ones the highest id."""
    x = torch.tensor([[0.0, 2.0, 1.0, 2.0, -1.0], [3.0, 0.0, -5.0, 0.0, -math.inf]])
    keep = reference.support(x, top_p=cases.promoted(top_p))
    assert torch.nonzero(keep).tolist() == [[0, 3], [1, 0]]


@given(
    top_p=st.floats(2**-10, 1.0, width=32, exclude_max=True) | st.sampled_from([0.25, 0.5, 0.875]),
    tied=st.integers(1, 40),
    others=st.integers(0, 5),
    floor=st.sampled_from([-math.inf, -200.0]),
    top_k=st.integers(0, 50),
)
@settings(max_examples=200)
def test_ties_at_the_nucleus_edge(
    top_p: float, tied: int, others: int, floor: float, top_k: int
) -> None:
    """Of m tokens that share all the mass, floor(m (1 - p)) of the lowest ids go, never the last.

    Counted in rationals; what top-k leaves does not change it, since its ties all stay.
    """
    x_V = np.full(tied + others, floor, dtype=np.float32)
    ids = np.random.default_rng(tied).permutation(tied + others)[:tied]
    x_V[ids] = 3.5
    gone = min(tied - 1, math.floor(tied * (1 - Fraction(top_p))))
    if 0 < top_k <= tied or floor == -math.inf or top_p < 0.999:
        keep = reference.support(torch.from_numpy(x_V)[None], top_k=top_k, top_p=top_p)[0]
        assert torch.nonzero(keep)[:, 0].tolist() == sorted(ids.tolist())[gone:]


@given(
    row=st.lists(st.sampled_from([-math.inf, -2.0, -1.0, -0.0, 0.0, 1.0]), min_size=1, max_size=24),
    top_k=st.integers(-1, 26),
    top_p=st.floats(2**-10, 1.0, width=32),
    min_p=st.sampled_from([0.0, 1.0]) | st.floats(2**-10, 1.0, width=32),
)
@settings(max_examples=300)
def test_small_rows_full_of_ties(row: list[float], top_k: int, top_p: float, min_p: float) -> None:
    x_T_V = np.array([row, row[::-1]], dtype=np.float32)
    if np.isfinite(x_T_V).any():
        assert_supports(reference.support, x_T_V, cases.Setting(1.0, top_k, top_p, min_p))


def test_all_ties_at_the_kth_value_stay() -> None:
    x = torch.tensor([[1.0, 3.0, 1.0, 2.0, 1.0, 0.0]])
    assert reference.support(x, top_k=3).tolist() == [[True, True, True, True, True, False]]
    assert reference.support(x, top_k=2).sum() == 2
    assert reference.support(x, top_k=5).sum() == 5


@pytest.mark.parametrize("top_k", [0, -1, 6, 7])
def test_top_k_off(top_k: int) -> None:
    """-1, 0 and anything that reaches the vocabulary keep every token that is not banned."""
    x = torch.tensor([[1.0, -math.inf, 1.0, 2.0, -50.0, 0.0]])
    assert reference.support(x, top_k=top_k).tolist() == [[True, False, True, True, True, True]]


def test_top_p_is_measured_on_what_top_k_left() -> None:
    """Masses .5 .3 .1 .1: of the top two .625 and .375, so p = .6 keeps one, of all four two."""
    x = torch.tensor([[0.5, 0.3, 0.1, 0.1]]).log()
    assert reference.support(x, top_k=2, top_p=0.6).sum() == 1
    assert reference.support(x, top_p=0.6).sum() == 2


def test_min_p_compares_with_the_best_token_not_with_the_nucleus() -> None:
    """min-p keeps exp(x - max) >= min_p, its bound included at 1; renormalising changes nothing."""
    x = torch.tensor([[0.0, 0.0, -1.0, -2.0, -3.0]])
    assert reference.support(x, min_p=1.0).sum() == 2
    assert reference.support(x, min_p=cases.promoted(math.exp(-1.5))).sum() == 3
    assert reference.support(x, top_k=3, top_p=0.9, min_p=cases.promoted(math.exp(-2.5))).sum() == 3


def test_keep_realised_joins_the_support() -> None:
    """The label guard: a realised token that was cut gets a finite value, and the kept mass its
    probability; without the guard it is -inf."""
    x_T_V = np.array([[2.0, 1.0, 0.0, -1.0]], dtype=np.float32)
    keep_T_V = reference.support(torch.from_numpy(x_T_V), top_k=2).numpy()
    realised = np.array([[3]])
    assert processed(x_T_V, keep_T_V, realised)[1].item() == -math.inf
    guarded = keep_T_V | np.array([[False, False, False, True]])
    log_kept, value = processed(x_T_V, guarded, realised)
    weights = np.exp(x_T_V[0].astype(np.float64))
    assert value.item() == pytest.approx(math.log(weights[3] / weights[[0, 1, 3]].sum()), abs=1e-6)
    assert log_kept.item() == pytest.approx(
        math.log(weights[[0, 1, 3]].sum() / weights.sum()), abs=1e-6
    )


def test_nothing_truncated_changes_nothing() -> None:
    """Neutral processing: kept mass exactly 1, processed equal to plain log-probs to the bit."""
    rng = np.random.default_rng(0)
    x_T_V = np.stack([cases.continuous(rng, 500) for _ in range(4)])
    x = torch.from_numpy(x_T_V)
    keep = reference.support(x)
    log_kept, values = processed(x_T_V, keep.numpy(), np.tile(np.arange(500), (4, 1)))
    assert keep.all()
    assert log_kept.tolist() == [0.0] * 4
    plain = reference.logprobs_at(x, reference.logsumexp(x), torch.arange(500).expand(4, -1))
    np.testing.assert_array_equal(values, plain.numpy())


def test_a_row_does_not_depend_on_its_neighbours() -> None:
    rng = np.random.default_rng(1)
    x = torch.from_numpy(np.stack([cases.random_row(rng, 1001) for _ in range(16)]))
    together = reference.support(x, top_k=200, top_p=0.8, min_p=0.01)
    for row in range(16):
        alone = reference.support(x[row : row + 1].clone(), top_k=200, top_p=0.8, min_p=0.01)
        assert torch.equal(alone[0], together[row])
