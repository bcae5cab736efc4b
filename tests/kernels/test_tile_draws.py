"""What every tile of a CPU draws, and says of it, against pure Python."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from scoring_service.kernels import dispatch
from scoring_service.kernels.cpu.ops import load_cpu_kernels
from scoring_service.kernels.tile import Tile
from tests.kernels import cases, oracle
from tests.kernels.checks import EDGE

VOCAB = 60

TILES: dict[str, Callable[[Tensor, float], Tile]] = {
    "CompiledTile": lambda x, t: dispatch.make_tile(x, t, kernels=load_cpu_kernels()),
    "EagerTile": dispatch.make_tile,
    "ReferenceTile": dispatch.reference_tile,
}

SETTINGS = [
    cases.Setting(),
    cases.Setting(0.7, top_k=8),
    cases.Setting(1.3, top_p=cases.promoted(0.6)),
    cases.Setting(2.0, top_k=30, top_p=cases.promoted(0.9), min_p=cases.promoted(0.02)),
    cases.Setting(top_k=VOCAB + 5),
]


def random_logits(seed: int) -> oracle.F32:
    rng = np.random.default_rng(seed)
    return np.stack([cases.random_row(rng, VOCAB) for _ in range(16)])


@pytest.mark.parametrize("name", TILES)
@pytest.mark.parametrize("setting", SETTINGS, ids=str)
def test_tokens_and_their_processed_logprobs(name: str, setting: cases.Setting) -> None:
    logits_T_V = random_logits(1)
    rows = len(logits_T_V)
    seeds = [2**63 + row for row in range(rows)]
    indices, positions = list(range(rows)), [2**20 + row for row in range(rows)]
    tile = TILES[name](torch.from_numpy(logits_T_V), setting.temperature)
    assert type(tile).__name__ == name
    filters = setting.top_k, setting.top_p, setting.min_p
    ids_T, processed_T = tile.draw(*filters, seeds, indices, positions)
    assert (ids_T.dtype, processed_T.dtype) == (torch.int64, torch.float32)
    checked = 0
    for row, logits_V in enumerate(logits_T_V):
        x_V = oracle.scaled(logits_V, setting.temperature)
        if oracle.nucleus_edge(x_V, setting.top_k, setting.top_p, EDGE).any():
            continue
        keep_V = oracle.support(x_V, *filters)
        keys = oracle.race(x_V, keep_V, seeds[row], indices[row], positions[row])
        best = int(np.argmin(keys))
        assert ids_T[row] == best
        want = oracle.processed_logprobs(x_V, keep_V)[best]
        assert float(processed_T[row]) == pytest.approx(want, abs=1e-5)
        checked += 1
    assert checked >= 5


@pytest.mark.parametrize("name", TILES)
def test_greedy_takes_the_lowest_of_the_best(name: str) -> None:
    logits_T_V = random_logits(2)
    logits_T_V[0, [3, 9, 41]] = 90.0
    ids_T = TILES[name](torch.from_numpy(logits_T_V), 1.0).greedy()
    assert ids_T.dtype == torch.int64
    assert ids_T.tolist() == [oracle.top_k_ids(x_V, 1)[0] for x_V in logits_T_V]
    assert ids_T[0] == 3


@pytest.mark.parametrize("name", TILES)
@pytest.mark.parametrize("broken", [torch.nan, torch.inf, -torch.inf], ids=str)
def test_ids_of_broken_rows_exist(name: str, broken: float) -> None:
    """They are looked up before anybody knows."""
    tile = TILES[name](torch.full((2, VOCAB), broken), 0.7)
    filters = (0, 1.0, 0.0), (5, 0.9, 0.0), (5, 0.9, 0.01)
    drawn = [tile.draw(*filter_, [1, 2], [0, 0], [5, 5])[0] for filter_ in filters]
    for ids_T in (*drawn, tile.greedy()):
        assert ((ids_T >= 0) & (ids_T < VOCAB)).all()
