"""The checks that the reference must pass and the wrong variants of test_traps.py must not.

Each takes the function under test as an argument and raises AssertionError where it is wrong.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import stats
from torch import Tensor

from tests.kernels import oracle
from tests.kernels.cases import Setting

EDGE = 4e-6
"""Supports may differ only where the cumulative mass is this close to 1 - p."""

DRAWS = 200_000

Draw = Callable[[Tensor, Tensor, list[int], list[int], list[int]], Tensor]
Support = Callable[..., Tensor]


def half_ulp(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """What rounding to fp32 alone may cost."""
    finite = np.where(np.isfinite(values), values, 0.0).astype(np.float32)
    return np.spacing(np.abs(finite)).astype(np.float64) / 2


def assert_values(got: NDArray[np.floating], want: NDArray[np.float64]) -> None:
    """Equal infinities; finite values within 1e-5, or within fp32's own rounding of them where they
    are so large (beyond 256) that fp32 cannot hold them to that."""
    np.testing.assert_array_equal(np.isneginf(got), np.isneginf(want))
    finite = np.isfinite(want)
    error = np.abs(got.astype(np.float64)[finite] - want[finite])
    bound = np.maximum(1e-5, half_ulp(want[finite]) + 2e-6)
    assert np.all(error <= bound), f"error {error.max()}"


def assert_supports(
    support: Support, x_T_V: oracle.F32, setting: Setting, within: float = EDGE
) -> NDArray[np.bool_]:
    """`support` keeps what docs/mathematics.md says, save within `within` of the nucleus's edge."""
    keep_T_V = support(torch.from_numpy(x_T_V), **setting.truncation).numpy()
    for row, (x_V, keep_V) in enumerate(zip(x_T_V, keep_T_V, strict=True)):
        differs = keep_V != oracle.support(x_V, **setting.truncation)
        excused = oracle.nucleus_edge(x_V, setting.top_k, setting.top_p, within)
        assert not np.any(differs & ~excused), (
            f"row {row}, {setting}: tokens {np.flatnonzero(differs & ~excused)[:10]}"
        )
        assert keep_V[oracle.best_first(x_V)[0]] or keep_V[x_V == x_V.max()].any(), "best dropped"
    return keep_T_V


def assert_ranks(
    rank: Callable[[Tensor, Tensor], Tensor], x_V: oracle.F32, token_ids: Sequence[int]
) -> None:
    """`rank` is 1 + larger + equal with a lower id."""
    x_T_V = torch.from_numpy(x_V).expand(len(token_ids), -1)
    got = rank(x_T_V, torch.tensor(token_ids)).tolist()
    assert got == [oracle.rank(x_V, token_id) for token_id in token_ids]


def assert_tail_masses(
    tail: Callable[[Tensor, Tensor, Tensor], Tensor], x_T_V: oracle.F32, k: int
) -> None:
    """The mass outside the top k within 1e-5 relative; exactly -inf where nothing is outside."""
    ids_T_K = np.stack([oracle.top_k_ids(x_V, k) for x_V in x_T_V])
    logsumexp_T = torch.tensor([oracle.logsumexp(x_V) for x_V in x_T_V], dtype=torch.float64)
    got = tail(torch.from_numpy(x_T_V), logsumexp_T, torch.from_numpy(ids_T_K)).double().tolist()
    for row, (log_mass, x_V, ids_K) in enumerate(zip(got, x_T_V, ids_T_K, strict=True)):
        want = oracle.log_tail_mass(x_V, ids_K)
        if want == -math.inf:
            assert log_mass == -math.inf
        else:
            relative = abs(math.expm1(log_mass - want)) if math.isfinite(log_mass) else math.inf
            assert relative <= 1e-5, f"row {row}, k {k}: {log_mass} for {want}"


def chi_square_p(counts: NDArray[np.int64], probabilities: NDArray[np.float64]) -> float:
    """P-value of the counts under the probabilities; tokens expected under 10 times are pooled."""
    assert counts[probabilities == 0].sum() == 0, "a token outside the support was drawn"
    expected = probabilities * (counts.sum() / probabilities.sum())
    rare = expected < 10
    bins = [*zip(counts[~rare], expected[~rare], strict=True)]
    pooled = (counts[rare].sum(), expected[rare].sum())
    if pooled[1] < 5:
        last = bins.pop()
        pooled = (last[0] + pooled[0], last[1] + pooled[1])
    observed_bins, expected_bins = zip(*bins, pooled, strict=True)
    if len(expected_bins) == 1:
        return 1.0
    return float(stats.chisquare(observed_bins, expected_bins).pvalue)


def draw_counts(
    draw: Draw, x_V: oracle.F32, keep_V: Tensor, varies: str, seed: int
) -> NDArray[np.int64]:
    """How often each token comes in 200,000 draws of one row; one of the three inputs varies."""
    batch = 2000
    x_T_V = torch.from_numpy(x_V).expand(batch, -1)
    keep_T_V = keep_V.expand(batch, -1)
    counts = np.zeros(len(x_V), dtype=np.int64)
    for start in range(0, DRAWS, batch):
        numbers = list(range(start, start + batch))
        inputs = {"seed": [seed] * batch, "sample_index": [3] * batch, "position": [17] * batch}
        # Seeds in use spread over 64 bits, most of them past 2**63 for some settings.
        inputs[varies] = [seed + n for n in numbers] if varies == "seed" else numbers
        drawn = draw(x_T_V, keep_T_V, inputs["seed"], inputs["sample_index"], inputs["position"])
        counts += np.bincount(drawn.numpy(), minlength=len(x_V))
    return counts


def assert_draws(
    draw: Draw, x_V: oracle.F32, setting: Setting, varies: str = "position", seed: int = 7
) -> None:
    """200,000 draws follow the processed distribution: chi-square p at least 1e-4."""
    keep_V = oracle.support(x_V, **setting.truncation)
    counts = draw_counts(draw, x_V, torch.from_numpy(keep_V), varies, seed)
    p_value = chi_square_p(counts, np.exp(oracle.processed_logprobs(x_V, keep_V)))
    assert p_value >= 1e-4, f"{setting}: p = {p_value}"


def assert_alone_as_in_batch(draw: Draw) -> None:
    """A (seed, index, position) draws one token: alone, in any batch, beside any neighbours."""
    rng = np.random.default_rng(5)
    x_T_V = torch.from_numpy(rng.normal(size=(24, 101)).astype(np.float32) * 2)
    keep_T_V = torch.from_numpy(rng.random((24, 101)) < 0.7)
    seeds = [int(s) for s in rng.integers(0, 2**64, size=24, dtype=np.uint64)]
    indices = [int(i) for i in rng.integers(0, 2**32, size=24)]
    positions = [int(p) for p in rng.integers(0, 2**20, size=24)]
    together = draw(x_T_V, keep_T_V, seeds, indices, positions)
    for rows in ([row] for row in range(24)):
        _assert_rows(draw, x_T_V, keep_T_V, (seeds, indices, positions), rows, together)
    for _ in range(6):
        rows = [int(r) for r in rng.permutation(24)[: rng.integers(2, 24)]]
        _assert_rows(draw, x_T_V, keep_T_V, (seeds, indices, positions), rows, together)


def _assert_rows(
    draw: Draw,
    x_T_V: Tensor,
    keep_T_V: Tensor,
    inputs: tuple[list[int], list[int], list[int]],
    rows: list[int],
    together: Tensor,
) -> None:
    chosen = [[values[row] for row in rows] for values in inputs]
    drawn = draw(x_T_V[rows], keep_T_V[rows], *chosen)
    assert drawn.tolist() == together[rows].tolist()
