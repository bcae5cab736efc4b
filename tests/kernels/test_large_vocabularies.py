"""Sums over the largest vocabularies against float64, where small terms stand beside a large one.

In float32 alone they are lost, or rounded in one direction: by 4e-4 of a log-prob in these rows.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch

from scoring_service.kernels.cpu.ops import load_cpu_kernels
from scoring_service.kernels.cpu.tile import CompiledTile
from scoring_service.kernels.tile import EagerTile, ReferenceTile
from tests.kernels import oracle
from tests.kernels.checks import assert_tail_masses

VOCAB = 262_144

Tile = CompiledTile | EagerTile | ReferenceTile

TILES: dict[str, Callable[[torch.Tensor], Tile]] = {
    "compiled": lambda x_T_V: CompiledTile(load_cpu_kernels(), x_T_V, 1.0),
    "eager": EagerTile,
    "reference": ReferenceTile,
}


def one_above(level: float) -> oracle.F32:
    """Token 0 at 0, all others below it, alike."""
    x_V = np.full(VOCAB, level, dtype=np.float32)
    x_V[0] = 0.0
    return x_V


def zipf() -> oracle.F32:
    """Ids by their frequency, as those of byte pair encodings are, roughly."""
    noise = np.random.default_rng(0).normal(size=VOCAB)
    return (noise - 1.5 * np.log(np.arange(VOCAB) + 1.0)).astype(np.float32)


def descending() -> oracle.F32:
    return np.sort(np.random.default_rng(1).normal(size=VOCAB).astype(np.float32) * 3)[::-1].copy()


ROWS = np.stack([one_above(-17.4), one_above(-8.0), zipf(), descending()])


@pytest.mark.parametrize("make", TILES.values(), ids=TILES.keys())
def test_sums(make: Callable[[torch.Tensor], Tile]) -> None:
    tile = make(torch.from_numpy(ROWS))
    logsumexps = [oracle.logsumexp(x_V) for x_V in ROWS]
    np.testing.assert_allclose(tile.logsumexp_T.numpy(), logsumexps, rtol=0, atol=1e-5)
    entropies = [oracle.entropy(x_V) for x_V in ROWS]
    np.testing.assert_allclose(tile.entropy().numpy(), entropies, rtol=0, atol=1e-5)


@pytest.mark.parametrize("make", TILES.values(), ids=TILES.keys())
@pytest.mark.parametrize("k", [1, 128])
def test_tails(make: Callable[[torch.Tensor], Tile], k: int) -> None:
    def tails(x_T_V: torch.Tensor, _: torch.Tensor, ids_T_K: torch.Tensor) -> torch.Tensor:
        tile = make(x_T_V)
        assert torch.equal(tile.top_k_ids(k, VOCAB), ids_T_K)
        return tile.log_tail_mass(ids_T_K)

    assert_tail_masses(tails, ROWS, k)


@pytest.mark.parametrize("make", TILES.values(), ids=TILES.keys())
def test_no_mass_is_above_one(make: Callable[[torch.Tensor], Tile]) -> None:
    """All but one token of next to no probability is outside of a list of one id."""
    x_V = np.full(VOCAB, -17.4, dtype=np.float32)
    x_V[0], x_V[64] = -60.0, 0.0
    tile = make(torch.from_numpy(x_V)[None])
    listed = tile.top_k_ids(1, 1)
    assert listed.tolist() == [[0]]
    assert -1e-6 < tile.log_tail_mass(listed).item() <= 0.0
