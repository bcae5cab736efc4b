"""Rows, vocabularies, hidden sizes, list lengths and types against each other.

Not their product, which an interpreter would take an hour for: every value of each meets every type
and every hidden size, and rows and list lengths meet vocabularies as far as they fit. Many rows of
float32 are in `test_linear`. The numbers may err as much as plain fp32 torch does, plus 1e-5; ids
and supports have to be the reference's.
"""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from scoring_service.kernels import reference
from scoring_service.kernels.gpu.tile import TritonTile
from scoring_service.kernels.linear_logprobs import linear_logprobs
from tests.kernels import cases, oracle
from tests.kernels.gpu.device import DEVICE
from tests.kernels.gpu.support import row_parameters, support_mask
from tests.kernels.gpu.test_linear import assert_numbers, random_head, x_of
from tests.kernels.gpu.test_tile import SLACK, random_ids

FP32, BF16, FP16 = torch.float32, torch.bfloat16, torch.float16

GRID = [
    # rows, hidden size, vocabulary, K, type
    (1, 576, 17, 1, BF16),
    (127, 64, 17, 1, FP16),
    (3, 64, 17, 2, FP32),
    (3, 64, 1000, 2, FP16),
    (255, 576, 1000, 1, FP16),
    (255, 64, 1000, 50, BF16),
    (127, 576, 1000, 2, BF16),
    (3, 576, 1000, 1000, FP32),
    (1, 576, 49_152, 50, FP16),
    (3, 64, 49_152, 1000, BF16),
    (3, 64, 49_152, 50, FP32),
    (1, 64, 151_936, 2, BF16),
    (1, 576, 151_936, 1, FP32),
    (1, 64, 151_936, 1000, FP16),
]

LIST_ROWS, SUPPORT_ROWS = 12, 3
"""Rows whose lists and supports are looked at: a program each, of which there may be any number."""


def test_the_grid_holds_what_it_says() -> None:
    kinds = {case[4] for case in GRID}
    for column, values in enumerate(
        [(1, 3, 127, 255), (64, 576), (17, 1000, 49_152, 151_936), (1, 2, 50, 1000)]
    ):
        for value in values:
            met = [case for case in GRID if case[column] == value]
            elsewhere = {FP32} if value in (127, 255) else set()
            assert {case[4] for case in met} == kinds - elsewhere, value
            assert column == 1 or {case[1] for case in met} == {64, 576}, value


@pytest.mark.parametrize(("rows", "hidden", "vocab", "k", "dtype"), GRID)
def test_log_probs_lists_and_supports(
    rows: int, hidden: int, vocab: int, k: int, dtype: torch.dtype
) -> None:
    hidden_T_H, head = random_head(rows, hidden, vocab, dtype)
    ids_T, ones_T = random_ids(rows, vocab), torch.ones(rows, device=DEVICE)
    eager_T_V = x_of(hidden_T_H, head, ones_T, torch.float32)
    truth_T_V = x_of(hidden_T_H, head, ones_T, torch.float64)
    # The fused kernel on the largest vocabularies takes long to interpret: `test_linear` does it.
    route = "fused" if vocab <= 1000 else "tiled"
    found = linear_logprobs(hidden_T_H, head, ids_T, route=route)
    assert_numbers(found, eager_T_V, truth_T_V, ids_T)

    logits_T_V = eager_T_V[-LIST_ROWS:].to(dtype)
    x_T_V = logits_T_V.float()
    tile = TritonTile(logits_T_V)
    top_T_K = tile.top_k_ids(k, vocab)
    assert torch.equal(top_T_K, reference.top_k_ids(x_T_V, k))
    tails = tile.log_tail_mass(top_T_K).tolist()
    for x_V, top_K, tail in zip(x_T_V.cpu(), top_T_K.cpu(), tails, strict=True):
        want = oracle.log_tail_mass(x_V.numpy(), top_K.numpy())
        assert tail == want or abs(math.expm1(tail - want)) <= SLACK

    rng = np.random.default_rng(vocab + rows)
    few = TritonTile(logits_T_V[:SUPPORT_ROWS])
    settings = [cases.random_setting(rng, vocab) for _ in few.x_T_V]
    supports = few.support(*row_parameters(settings))
    keep_T_V = support_mask(few, supports)
    for row, setting in enumerate(settings):
        want_1_V = reference.support(x_T_V[row : row + 1], **setting.truncation)
        assert torch.equal(keep_T_V[row : row + 1], want_1_V), f"row {row}: {setting}"
