"""The exact sampler: words bit for bit, keys within their bound, the reference's tokens."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import triton
from torch import Tensor

from scoring_service.kernels import philox, reference
from scoring_service.kernels.gpu import race
from scoring_service.kernels.gpu.tile import TritonTile, words_inputs
from scoring_service.types import Processing
from tests.kernels import cases
from tests.kernels.gpu.device import DEVICE
from tests.kernels.gpu.small_kernels import exponentials, write_words
from tests.kernels.gpu.support import row_parameters, support_mask

BLOCK = 1024


def random_inputs(rng: np.random.Generator, rows: int) -> tuple[list[int], list[int], list[int]]:
    """Seeds of all 64 bits, sample indices and positions of all 32."""
    seeds = [int(n) for n in rng.integers(0, 2**64, size=rows, dtype=np.uint64)]
    indices, positions = ([int(n) for n in rng.integers(0, 2**32, size=rows)] for _ in range(2))
    return seeds, indices, positions


@pytest.mark.parametrize("vocab", [1, 17, 1000, 151_936])
def test_words_are_the_references(vocab: int) -> None:
    rng = np.random.default_rng(vocab)
    rows = 1 if vocab > 10_000 else 5
    inputs = random_inputs(rng, rows)
    inputs[0][0] = 2**64 - 1
    words_T_V = torch.empty((rows, vocab), dtype=torch.int64, device=DEVICE)
    write_words[(rows, triton.cdiv(vocab, BLOCK))](
        words_T_V, *words_inputs(*inputs, DEVICE), vocab, BLOCK=BLOCK
    )
    assert torch.equal(words_T_V, philox.token_words(*inputs, vocab, DEVICE))


def test_exponentials_of_all_sizes() -> None:
    """E of the least and the greatest words, of one half, and of words of every magnitude."""
    rng = np.random.default_rng(0)
    ends = [0, 1, 2, 3, 2**31 - 1, 2**31, 2**31 + 1, 2**32 - 2, 2**32 - 1]
    sizes = (2.0 ** rng.uniform(0, 32, size=BLOCK - len(ends))).astype(np.int64)
    words = torch.tensor([*ends, *sizes.tolist()], device=DEVICE)
    got = torch.empty(BLOCK, device=DEVICE)
    exponentials[(1,)](words, got, BLOCK=BLOCK)
    truth = -torch.log1p(-(words.double() + 0.5) * 2.0**-32)
    assert ((got.double() - truth).abs() / truth).max() <= 1e-6


def keys_of(x_T_V: Tensor, keep_T_V: Tensor, inputs: tuple[list[int], ...]) -> Tensor:
    """The reference's keys in float64, inf outside the support."""
    words_T_V = philox.token_words(*inputs, x_T_V.shape[1], x_T_V.device)
    exponential_T_V = -torch.log1p(-(words_T_V.double() + 0.5) * 2.0**-32)
    below_T_V = x_T_V.double() - x_T_V.amax(dim=1, keepdim=True).double()
    return (exponential_T_V.log() - below_T_V).masked_fill(~keep_T_V, math.inf)


@pytest.mark.parametrize("vocab", [17, 1000, 5000])
def test_mixed_rows_draw_the_references_tokens(vocab: int) -> None:
    """Rows of every kind and setting in one launch; near ties may go either way, and are rare."""
    rng = np.random.default_rng(vocab)
    rows = 24 if vocab < 5000 else 6
    x_T_V = torch.from_numpy(np.stack([cases.random_row(rng, vocab) for _ in range(rows)]))
    x_T_V = x_T_V.to(DEVICE)
    row_settings = [cases.random_setting(rng, vocab) for _ in range(rows)]
    inputs = random_inputs(rng, rows)
    tile = TritonTile(x_T_V)
    drawn_T = tile.draw_from(tile.support(*row_parameters(row_settings)), *inputs)
    keep_T_V = torch.cat(
        [
            reference.support(x_T_V[row : row + 1], **setting.truncation)
            for row, setting in enumerate(row_settings)
        ]
    )
    want_T = reference.draw(x_T_V, keep_T_V, *inputs)
    differs_T = drawn_T != want_T
    assert differs_T.sum() <= 1
    keys_T_V = keys_of(x_T_V, keep_T_V, inputs)
    lead_T = (keys_T_V.gather(1, drawn_T[:, None]) - keys_T_V.gather(1, want_T[:, None]))[:, 0]
    assert (lead_T <= 2 * race.KEY_BOUND).all()


def test_rows_without_filters() -> None:
    """They need no support, and get the token that a support of everything gives."""
    rng = np.random.default_rng(1)
    x_T_V = torch.from_numpy(np.stack([cases.random_row(rng, 1000) for _ in range(20)]))
    x_T_V = x_T_V.to(DEVICE)
    inputs = random_inputs(rng, 20)
    tile = TritonTile(x_T_V)
    drawn_T = tile.draw_from(None, *inputs)
    assert torch.equal(drawn_T, reference.draw(x_T_V, x_T_V > -math.inf, *inputs))
    assert torch.equal(drawn_T, tile.draw_from(tile.support(0, 1.0, 0.0), *inputs))


def test_a_token_alone_and_in_company() -> None:
    """One stream: the batch, its order and the neighbours' filters change nothing."""
    rng = np.random.default_rng(2)
    x_T_V = torch.from_numpy(np.stack([cases.continuous(rng, 300) for _ in range(12)])).to(DEVICE)
    row_settings = [cases.random_setting(rng, 300) for _ in range(12)]
    inputs = random_inputs(rng, 12)

    def drawn(rows: list[int]) -> list[int]:
        tile = TritonTile(x_T_V[rows].contiguous())
        found = tile.support(*row_parameters([row_settings[row] for row in rows]))
        return tile.draw_from(found, *([column[row] for row in rows] for column in inputs)).tolist()

    together = drawn(list(range(12)))
    assert [drawn([row])[0] for row in range(12)] == together
    order = [int(row) for row in rng.permutation(12)]
    assert drawn(order) == [together[row] for row in order]


@pytest.mark.parametrize("spread", [1000.0, 1e38])
def test_the_least_likely_tokens_neither_overflow_nor_win(spread: float) -> None:
    x_T_V = torch.linspace(-spread, spread, 101, device=DEVICE).expand(50, -1).contiguous()
    drawn_T = TritonTile(x_T_V).draw_from(None, [3] * 50, [0] * 50, list(range(50)))
    assert drawn_T.tolist() == [100] * 50


@pytest.mark.parametrize("broken", [math.nan, math.inf, -math.inf])
def test_ids_of_broken_rows_exist(broken: float) -> None:
    """They are looked up before anybody knows."""
    tile = TritonTile(torch.full((2, 60), broken, device=DEVICE))
    for processing in (Processing(), Processing(1.0, 5, 0.9), Processing(0.0, 5, 0.9, 0.01)):
        ids_T, _, _ = tile.draw([processing, Processing()], [1, 2], [0, 0], [5, 5])
        assert ((ids_T >= 0) & (ids_T < 60)).all()


def test_support_of_the_race_is_the_mask() -> None:
    """Nothing outside the support is ever drawn, the nucleus's ties included."""
    x_T_V = torch.zeros((30, 64), device=DEVICE)
    x_T_V[:, 5] = 0.5
    tile = TritonTile(x_T_V)
    found = tile.support(0, 0.25, 0.0)
    drawn_T = tile.draw_from(found, [9] * 30, [0] * 30, list(range(30)))
    assert support_mask(tile, found).gather(1, drawn_T[:, None]).all()
    assert len(drawn_T.unique()) > 5
