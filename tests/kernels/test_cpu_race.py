"""The C++ race draws the reference's token, from every kind of row."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from scoring_service.kernels import reference
from scoring_service.kernels.cpu.ops import CpuKernels, load_cpu_kernels
from scoring_service.kernels.cpu.tile import CompiledTile
from scoring_service.types import Processing
from tests.kernels import cases
from tests.kernels.checks import assert_alone_as_in_batch, assert_draws

DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)


@pytest.fixture(scope="module")
def kernels() -> CpuKernels:
    return load_cpu_kernels()


def numbers(rng: np.random.Generator, rows: int) -> tuple[list[int], list[int], list[int]]:
    """Seeds of all 64 bits, sample indices and positions."""
    seeds = rng.integers(0, 2**64, size=rows, dtype=np.uint64).tolist()
    return seeds, rng.integers(0, 2**32, size=rows).tolist(), rng.integers(0, 2**20, rows).tolist()


@DTYPES
@pytest.mark.parametrize("vocab", [1, 2, 3, 5, 63, 64, 65, 1000, 3001])
@pytest.mark.parametrize("temperature", [1.0, 0.3, 1.9])
def test_the_references_token(
    kernels: CpuKernels, temperature: float, vocab: int, dtype: torch.dtype
) -> None:
    rng = np.random.default_rng(vocab)
    rows = np.stack([cases.random_row(rng, vocab) for _ in range(40)])
    logits = torch.from_numpy(rows).to(dtype)
    inputs = numbers(rng, 40)
    x_T_V = reference.scale(logits, temperature)
    expected = reference.draw(x_T_V, x_T_V > -torch.inf, *inputs)
    found = CompiledTile(kernels, logits, temperature).draw([Processing()] * 40, *inputs)[0]
    assert found.tolist() == expected.tolist()


@pytest.mark.parametrize("spread", [0.0, 0.1, 1.0, 5.0, 30.0])
def test_flat_and_peaked_rows_of_a_real_vocabulary(kernels: CpuKernels, spread: float) -> None:
    """Flat rows keep the race open to the end; peaked ones leave blocks out."""
    rng = np.random.default_rng(int(spread * 10))
    x_T_V = torch.from_numpy((spread * rng.normal(size=(16, 49_152))).astype(np.float32))
    inputs = numbers(rng, 16)
    expected = reference.draw(x_T_V, torch.ones_like(x_T_V).bool(), *inputs)
    found, _, _ = CompiledTile(kernels, x_T_V, 1.0).draw([Processing()] * 16, *inputs)
    assert found.tolist() == expected.tolist()


def test_a_token_far_below_the_others_can_win(kernels: CpuKernels) -> None:
    """Among 400,000 draws, a token of 1e-4 beside three of 1 comes as often as it should."""
    x_V = np.zeros(4, dtype=np.float32)
    x_V[2] = np.log(1e-4)  # 13.3 times
    rows = torch.from_numpy(x_V).expand(400_000, -1).contiguous()
    positions = list(range(400_000))
    columns = [[value] * 400_000 for value in (Processing(), 7, 0)]
    found, _, _ = CompiledTile(kernels, rows, 1.0).draw(*columns, positions)
    assert 4 <= (found == 2).sum().item() <= 25
    counts = torch.bincount(found, minlength=4)[[0, 1, 3]]
    assert (counts - 400_000 / 3).abs().max() < 5 * (400_000 * 2 / 9) ** 0.5


@pytest.mark.parametrize("varies", ["seed", "sample_index", "position"])
def test_the_distribution(kernels: CpuKernels, varies: str) -> None:
    rng = np.random.default_rng(3)
    x_V = (2 * rng.normal(size=50)).astype(np.float32)

    def draw(
        x_T_V: torch.Tensor,
        _keep: torch.Tensor,
        seeds: list[int],
        indices: list[int],
        positions: list[int],
    ) -> torch.Tensor:
        tile = CompiledTile(kernels, x_T_V.contiguous(), 1.0)
        return tile.draw([Processing()] * len(seeds), seeds, indices, positions)[0]

    assert_draws(draw, x_V, cases.Setting(), varies=varies)


def test_alone_as_in_a_batch(kernels: CpuKernels) -> None:
    def draw(
        x_T_V: torch.Tensor,
        keep_T_V: torch.Tensor,
        seeds: list[int],
        indices: list[int],
        positions: list[int],
    ) -> torch.Tensor:
        allowed_T_V = x_T_V.masked_fill(~keep_T_V, -torch.inf)
        tile = CompiledTile(kernels, allowed_T_V, 1.0)
        return tile.draw([Processing()] * len(seeds), seeds, indices, positions)[0]

    assert_alone_as_in_batch(draw)


@pytest.mark.parametrize("block", range(4))
def test_truncated_rows(kernels: CpuKernels, block: int) -> None:
    """Every mix of filters: the token that the reference draws from its support, and its value."""
    rng = np.random.default_rng(70 + block)
    for _ in range(40):
        vocab = int(rng.choice([1, 5, 40, 300, 3000]))
        setting = cases.random_setting(rng, vocab)
        rows = np.stack([cases.random_row(rng, vocab) for _ in range(6)])
        dtype = torch.bfloat16 if rng.random() < 0.5 else torch.float32
        logits = torch.from_numpy(rows).to(dtype)
        x_T_V = reference.scale(logits, setting.temperature)
        inputs = numbers(rng, 6)
        keep_T_V = reference.support(x_T_V, **setting.truncation)
        logsumexp_T = reference.logsumexp(x_T_V)
        kept_T = reference.log_kept_mass(x_T_V, logsumexp_T, keep_T_V)
        expected = reference.draw(x_T_V, keep_T_V, *inputs)
        found, processed_T, _ = CompiledTile(kernels, logits, setting.temperature).draw(
            [setting.processing] * 6, *inputs
        )
        assert found.tolist() == expected.tolist(), setting
        exact = reference.processed_logprobs_at(x_T_V, logsumexp_T, keep_T_V, kept_T, found)
        torch.testing.assert_close(processed_T, exact, rtol=0, atol=1e-5)


@pytest.mark.parametrize("top_p", [1e-30, 1e-7, 0.5, 0.999, 1 - 1e-7])
@pytest.mark.parametrize("spread", [0.0, 0.3, 3.0])
def test_nuclei_of_a_real_vocabulary(kernels: CpuKernels, spread: float, top_p: float) -> None:
    """From one token to nearly all of them: sizes and draws are the reference's."""
    rng = np.random.default_rng(9)
    x_T_V = torch.from_numpy((spread * rng.normal(size=(3, 49_152))).astype(np.float32))
    x_T_V = x_T_V.bfloat16().float()  # ties at every edge
    inputs = numbers(rng, 3)
    keep_T_V = reference.support(x_T_V, 0, top_p, 0.0)
    tile = CompiledTile(kernels, x_T_V, 1.0)
    ids_T = torch.zeros(3, dtype=torch.int64)
    nuclei = [Processing(top_p=top_p)] * 3
    sizes = tile.truncate(nuclei, ids_T, ids_T.bool()).sizes_T
    assert sizes.tolist() == keep_T_V.sum(dim=1).tolist()
    expected = reference.draw(x_T_V, keep_T_V, *inputs)
    assert tile.draw(nuclei, *inputs)[0].tolist() == expected.tolist()
