"""Numbers of rows by the C++ kernels against the float64 oracle, from fp32 and from bf16."""

from __future__ import annotations

import math
from functools import partial

import numpy as np
import pytest
import torch

from scoring_service.kernels.cpu.ops import CpuKernels, load_cpu_kernels
from scoring_service.kernels.cpu.tile import CompiledTile
from tests.kernels import cases, oracle
from tests.kernels.checks import assert_supports, assert_tail_masses, assert_values
from tests.kernels.oracle import F32

VOCABS = (1, 2, 17, 31, 33, 1000, 2049)
DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)


@pytest.fixture(scope="module")
def kernels() -> CpuKernels:
    return load_cpu_kernels()


def rows_of(seed: int, vocab: int, count: int, dtype: torch.dtype) -> torch.Tensor:
    rng = np.random.default_rng(seed)
    return torch.from_numpy(np.stack([cases.random_row(rng, vocab) for _ in range(count)])).to(
        dtype
    )


def scaled(logits_T_V: torch.Tensor, temperature: float) -> F32:
    return oracle.scaled(logits_T_V.float().numpy(), temperature)


@DTYPES
@pytest.mark.parametrize("vocab", VOCABS)
@pytest.mark.parametrize("temperature", [1.0, 0.3, 1.7])
def test_sums(kernels: CpuKernels, temperature: float, vocab: int, dtype: torch.dtype) -> None:
    logits = rows_of(vocab, vocab, 12, dtype)
    tile = CompiledTile(kernels, logits, temperature)
    for row, x_V in enumerate(scaled(logits, temperature)):
        assert tile.max_T[row].item() == x_V.max()
        assert tile.logsumexp_T[row].item() == pytest.approx(oracle.logsumexp(x_V), abs=1e-6)
        assert tile.entropy()[row].item() == pytest.approx(oracle.entropy(x_V), abs=1e-5)
        assert tile.possible_tokens()[row].item() == (x_V > -math.inf).sum()
        ids = np.arange(min(vocab, 50))
        found = tile.logprobs_at(torch.from_numpy(ids).expand(12, -1))[row]
        assert_values(found.numpy(), oracle.logprobs(x_V)[ids])


@pytest.mark.parametrize("offset", [-1e4, 128.0, 3e4])
def test_a_level_far_from_zero(kernels: CpuKernels, offset: float) -> None:
    """Sums are taken below the maximum: what all logits share does not matter."""
    x_T_V = rows_of(1, 5000, 6, torch.float32) + np.float32(offset)
    tile = CompiledTile(kernels, x_T_V, 1.0)
    for row, x_V in enumerate(x_T_V.numpy()):
        expected = oracle.logsumexp(x_V)
        assert tile.logsumexp_T[row].item() == pytest.approx(expected, abs=1e-6)
        assert tile.entropy()[row].item() == pytest.approx(oracle.entropy(x_V), abs=1e-5)


@pytest.mark.parametrize("broken", [math.nan, math.inf])
@pytest.mark.parametrize("place", [0, 16, 99])
def test_a_broken_row_shows(kernels: CpuKernels, place: int, broken: float) -> None:
    x_T_V = rows_of(2, 100, 2, torch.float32)
    x_T_V[1, place] = broken
    tile = CompiledTile(kernels, x_T_V, 1.0)
    assert torch.isfinite(tile.logsumexp_T).tolist() == [True, False]
    # Its list means nothing, but can be looked up.
    assert ((tile.top_k_ids(7, 100) >= 0) & (tile.top_k_ids(7, 100) < 100)).all()


def test_a_row_without_any_token_shows(kernels: CpuKernels) -> None:
    tile = CompiledTile(kernels, torch.full((1, 40), -math.inf), 1.0)
    assert not torch.isfinite(tile.logsumexp_T).any()
    assert tile.possible_tokens().tolist() == [0]


@DTYPES
@pytest.mark.parametrize("vocab", VOCABS)
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_ranks(kernels: CpuKernels, temperature: float, vocab: int, dtype: torch.dtype) -> None:
    rng = np.random.default_rng(vocab)
    logits = rows_of(vocab + 1, vocab, 12, dtype)
    tile = CompiledTile(kernels, logits, temperature)
    rows = scaled(logits, temperature)
    for limit in {None, vocab, max(1, vocab // 2), 1}:
        ids = torch.from_numpy(rng.integers(vocab, size=12))
        expected = [oracle.rank(x_V, int(i), limit) for x_V, i in zip(rows, ids, strict=True)]
        assert tile.rank(ids, limit).tolist() == expected


@DTYPES
@pytest.mark.parametrize("k", [1, 2, 50, 999, 1024, 8192, 49_152])
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_top_ids(kernels: CpuKernels, temperature: float, k: int, dtype: torch.dtype) -> None:
    """Every kind of row; bf16 rows are full of ties, and so is what a division rounds together."""
    for vocab in {max(v, k) for v in (k + 1, 1000, 5003, 49_152)}:
        logits = rows_of(k + vocab, vocab, 4, dtype)
        found = CompiledTile(kernels, logits, temperature).top_k_ids(k, vocab)
        expected = [oracle.top_k_ids(x_V, k) for x_V in scaled(logits, temperature)]
        np.testing.assert_array_equal(found.numpy(), expected)


@pytest.mark.parametrize("beyond", [30, 110])
@pytest.mark.parametrize("kind", cases.KINDS)
def test_top_ids_below_a_limit(kernels: CpuKernels, kind: object, beyond: float) -> None:
    """An id at the limit may be likelier than the whole list, by any factor."""
    rng = np.random.default_rng(6)
    x_V = kind(rng, 3001)  # type: ignore[operator]
    x_V[2990] = beyond
    tile = CompiledTile(kernels, torch.from_numpy(x_V)[None], 1.0)
    for limit in (40, 1500, 2990, 3000):
        listed = tile.top_k_ids(40, limit)
        np.testing.assert_array_equal(listed[0].numpy(), oracle.top_k_ids(x_V[:limit], 40))
        rest = tile.log_tail_mass(listed).item()
        assert rest == pytest.approx(oracle.log_tail_mass(x_V, listed[0].numpy()), abs=1e-5)
        assert rest <= 0


@pytest.mark.parametrize("k", [1, 20, 128, 1024, 8192, 49_151, 49_152])
@pytest.mark.parametrize("peak", [0.0, 40.0, 200.0])
def test_tail_masses(kernels: CpuKernels, peak: float, k: int) -> None:
    """With a peak of 200 the tail's mass is e**-190."""
    rng = np.random.default_rng(int(peak))
    x_T_V = (rng.normal(size=(2, 49_152)) * np.array([[1.0], [3.0]])).astype(np.float32)
    x_T_V[:, 777] += np.float32(peak)
    assert_tail_masses(tail_of(kernels), x_T_V, k)


@pytest.mark.parametrize("k", [1, 2, 255, 999, 1000])
def test_tail_masses_of_every_kind_of_row(kernels: CpuKernels, k: int) -> None:
    rng = np.random.default_rng(k)
    rows = [cases.random_row(rng, 1000) for _ in range(20)] + [
        kind(rng, 1000) for kind in cases.KINDS
    ]
    assert_tail_masses(tail_of(kernels), np.stack(rows), k)


def tail_of(kernels: CpuKernels):  # type: ignore[no-untyped-def]
    def tail(x_T_V: torch.Tensor, _logsumexp_T: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
        tile = CompiledTile(kernels, x_T_V, 1.0)
        assert torch.equal(tile.top_k_ids(ids.shape[1], x_T_V.shape[1]), ids)
        return tile.log_tail_mass(ids)

    return tail


@pytest.mark.parametrize("block", range(4))
def test_truncation(kernels: CpuKernels, block: int) -> None:
    """Sizes of supports, kept masses and processed log-probs, over settings that seek edges."""
    rng = np.random.default_rng(block)
    for _ in range(40):
        vocab = int(rng.choice([5, 40, 300, 3000]))
        setting = cases.random_setting(rng, vocab)
        logits = torch.from_numpy(np.stack([cases.random_row(rng, vocab) for _ in range(3)]))
        x_T_V = scaled(logits, setting.temperature)
        tile = CompiledTile(kernels, logits, setting.temperature)
        keep_T_V = None
        if vocab <= 40:
            keep_T_V = assert_supports(partial(support_of, tile, setting), x_T_V, setting)
        ids = rng.integers(vocab, size=3)
        found = truncation(tile, torch.from_numpy(ids), setting)
        for row, x_V in enumerate(x_T_V):
            keep_V = oracle.support(x_V, **setting.truncation)
            edge = oracle.nucleus_edge(x_V, setting.top_k, setting.top_p, 4e-6)
            if keep_T_V is not None:
                keep_V = keep_T_V[row]
            elif edge.any():
                continue
            assert found.sizes_T[row].item() == keep_V.sum()
            kept = found.log_kept_mass_T[row].item()
            assert kept == pytest.approx(oracle.log_kept_mass(x_V, keep_V), abs=1e-6)
            expected = oracle.processed_logprobs(x_V, keep_V)[ids[row]]
            assert_values(found.processed_T[row : row + 1].numpy(), np.array([expected]))


def support_of(
    tile: CompiledTile, setting: cases.Setting, x_T_V: torch.Tensor, **_: object
) -> torch.Tensor:
    """The tokens that a tile's truncation leaves, asked one by one."""
    columns = [
        truncation(tile, torch.full((len(x_T_V),), token), setting).processed_T > -math.inf
        for token in range(x_T_V.shape[1])
    ]
    return torch.stack(columns, dim=1)


def truncation(tile: CompiledTile, ids_T: torch.Tensor, setting: cases.Setting):  # type: ignore[no-untyped-def]
    rows = len(ids_T)
    return tile.truncate([setting.processing] * rows, ids_T, torch.zeros(rows).bool())


def test_a_row_does_not_know_its_neighbours(kernels: CpuKernels) -> None:
    """The same bits alone, in a tile, in a view with gaps, and on one thread."""
    logits = rows_of(8, 49_152, 9, torch.bfloat16)
    together = CompiledTile(kernels, logits, 0.9)
    wide = torch.zeros(9, 50_000, dtype=torch.bfloat16)
    wide[:, :49_152] = logits
    for tile, rows in (
        (CompiledTile(kernels, logits[4:5], 0.9), slice(4, 5)),
        (CompiledTile(kernels, wide[:, :49_152], 0.9), slice(0, 9)),
    ):
        assert torch.equal(tile.logsumexp_T, together.logsumexp_T[rows])
        assert torch.equal(tile.entropy(), together.entropy()[rows])
        assert torch.equal(tile.top_k_ids(50, 49_152), together.top_k_ids(50, 49_152)[rows])
