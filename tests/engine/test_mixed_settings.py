"""Rows of any settings in one tile: the bits that each has alone."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
import torch

from scoring_service.engine.outputs.draws import MakeTile
from scoring_service.kernels import dispatch
from scoring_service.kernels.cpu.ops import load_cpu_kernels
from scoring_service.types import Processing
from tests.engine.mixed_settings import DRAWN, SCORED, drawn_bits, mixed_rows, scored_bits
from tests.kernels import cases

VOCAB = 3001

BACKENDS: dict[str, MakeTile] = {
    "compiled": lambda *given: dispatch.make_tile(*given, kernels=load_cpu_kernels()),
    "eager": dispatch.make_tile,
    "reference": dispatch.reference_tile,
}


def logits(seed: int, rows: int = 16, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    rng = np.random.default_rng(seed)
    found = np.stack([cases.random_row(rng, VOCAB) for _ in range(rows)])
    return torch.from_numpy(found).to(dtype)


@pytest.mark.parametrize("name", BACKENDS)
def test_draws_have_the_bits_of_each_row_alone(name: str) -> None:
    make_tile, logits_T_V, rows = BACKENDS[name], logits(1), mixed_rows(DRAWN)
    together = drawn_bits(logits_T_V, rows, make_tile)
    for place, row in enumerate(rows):
        alone = drawn_bits(logits_T_V[place : place + 1], [row], make_tile)
        assert alone == together[place : place + 1], row


@pytest.mark.parametrize("name", BACKENDS)
def test_scores_have_the_bits_of_each_row_alone(name: str) -> None:
    make_tile, logits_T_V, settings = BACKENDS[name], logits(2), SCORED * 2
    together = scored_bits(logits_T_V, 0, settings, make_tile)
    for place, setting in enumerate(settings):
        row_1_V = logits_T_V[place : place + 1]
        alone = scored_bits(row_1_V, place, [setting], make_tile)
        assert alone == together[place : place + 1], setting


def test_bfloat16_rows_as_well() -> None:
    make_tile = partial(dispatch.make_tile, kernels=load_cpu_kernels())
    logits_T_V, rows = logits(3, dtype=torch.bfloat16), mixed_rows(DRAWN)
    together = drawn_bits(logits_T_V, rows, make_tile)
    alone = [drawn_bits(logits_T_V[n : n + 1], [row], make_tile) for n, row in enumerate(rows)]
    assert [bits for (bits,) in alone] == together


def test_a_token_that_a_model_rules_out_counts_in_no_support() -> None:
    """Nor does `keep_realised` bring it in where nothing is truncated, whatever its neighbours."""
    logits_T_V = torch.zeros(2, 50)
    logits_T_V[:, 6] = -torch.inf  # row 1's realised token
    settings = [SCORED[1], Processing(keep_realised=True)]
    for make_tile in BACKENDS.values():
        together = scored_bits(logits_T_V, 0, settings, make_tile)
        sizes = [int(np.frombuffer(bits["support_sizes"], np.int32)[0]) for bits in together]
        assert sizes == [49, 49]
