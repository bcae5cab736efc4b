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
from scoring_service.types import Processing
from tests.kernels import cases, oracle
from tests.kernels.checks import EDGE

VOCAB = 60
NUMBERS = list(range(16)), [0] * 16, [7] * 16

TILES: dict[str, Callable[[Tensor, float | list[float]], Tile]] = {
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
    ids_T, processed_T, _ = tile.draw([setting.processing] * rows, seeds, indices, positions)
    assert (ids_T.dtype, processed_T.dtype) == (torch.int64, torch.float32)
    checked = 0
    for row, logits_V in enumerate(logits_T_V):
        x_V = oracle.scaled(logits_V, setting.temperature)
        if oracle.nucleus_edge(x_V, setting.top_k, setting.top_p, EDGE).any():
            continue
        keep_V = oracle.support(x_V, **setting.truncation)
        keys = oracle.race(x_V, keep_V, seeds[row], indices[row], positions[row])
        best = int(np.argmin(keys))
        assert ids_T[row] == best
        want = oracle.processed_logprobs(x_V, keep_V)[best]
        assert float(processed_T[row]) == pytest.approx(want, abs=1e-5)
        checked += 1
    assert checked >= 5


MIXED = [
    cases.Setting(0.0),
    cases.Setting(cases.promoted(0.7)),
    cases.Setting(top_k=1),
    cases.Setting(0.7, top_k=50),
    cases.Setting(top_p=cases.promoted(0.1)),
    cases.Setting(1.3, min_p=cases.promoted(0.05)),
    cases.Setting(),
    cases.Setting(2.0, top_k=8, top_p=cases.promoted(0.9)),
]


@pytest.mark.parametrize("name", TILES)
def test_rows_of_many_settings(name: str) -> None:
    """Each by its own, every second one with bans: what the oracle draws of a row alone."""
    logits_T_V = random_logits(3)
    rows = [MIXED[place % 8] for place in range(16)]
    banned_T = [(7, place, 59) if place % 16 >= 8 else () for place in range(16)]
    for row, logits_V in enumerate(logits_T_V):
        logits_V[:10] += 3.0 * (row >= 8)  # banned ids are likely
    temperatures = [setting.temperature or 1.0 for setting in rows]
    tile = TILES[name](torch.from_numpy(logits_T_V), temperatures)
    processings = [setting.processing for setting in rows]
    ids_T, processed_T, drawable_T = tile.draw(processings, *NUMBERS, banned_T)
    assert drawable_T.all()
    checked = set()
    for row, (logits_V, setting) in enumerate(zip(logits_T_V, rows, strict=True)):
        x_V = oracle.scaled(logits_V, temperatures[row])
        x_V[list(banned_T[row])] = -np.inf
        if oracle.nucleus_edge(x_V, setting.top_k, setting.top_p, EDGE).any():
            continue
        checked.add(row % 8)
        if setting.temperature == 0.0:
            assert (ids_T[row], processed_T[row]) == (oracle.top_k_ids(x_V, 1)[0], 0.0)
            continue
        keep_V = oracle.support(x_V, **setting.truncation)
        best = int(np.argmin(oracle.race(x_V, keep_V, *(column[row] for column in NUMBERS))))
        assert ids_T[row] == best
        want = oracle.processed_logprobs(x_V, keep_V)[best]
        assert float(processed_T[row]) == pytest.approx(want, abs=1e-5)
    assert checked == set(range(8)), "every setting is compared"


@pytest.mark.parametrize("name", TILES)
def test_rows_without_a_token_to_draw_are_told(name: str) -> None:
    tile = TILES[name](torch.zeros(2, 3), 1.0)
    columns = [[0, 0]] * 3
    drawable_T = tile.draw([Processing()] * 2, *columns, [(0, 1, 2), (0, 1)])[2]
    assert drawable_T.tolist() == [False, True]


@pytest.mark.parametrize("name", TILES)
def test_lists_of_several_lengths(name: str) -> None:
    logits_T_V = random_logits(4)[:4]
    lengths = [0, 5, 1, 20]
    ids_T_K = TILES[name](torch.from_numpy(logits_T_V), 1.0).top_k_ids(lengths, VOCAB)
    assert ids_T_K.shape == (4, 20)
    assert ((ids_T_K >= 0) & (ids_T_K < VOCAB)).all()
    for ids_K, k, logits_V in zip(ids_T_K.tolist(), lengths, logits_T_V, strict=True):
        assert ids_K[:k] == list(oracle.top_k_ids(logits_V, 20)[:k])


@pytest.mark.parametrize("name", TILES)
def test_greedy_takes_the_lowest_of_the_best(name: str) -> None:
    logits_T_V = random_logits(2)
    logits_T_V[0, [3, 9, 41]] = 90.0
    tile = TILES[name](torch.from_numpy(logits_T_V), 1.0)
    ids_T, processed_T, _ = tile.draw([Processing(0.0, top_k=5)] * 16, *NUMBERS)
    assert (ids_T.dtype, processed_T.dtype) == (torch.int64, torch.float32)
    assert processed_T.tolist() == [0.0] * 16
    assert ids_T.tolist() == [oracle.top_k_ids(x_V, 1)[0] for x_V in logits_T_V]
    assert ids_T[0] == 3


@pytest.mark.parametrize("name", TILES)
@pytest.mark.parametrize("broken", [torch.nan, torch.inf, -torch.inf], ids=str)
def test_ids_of_broken_rows_exist(name: str, broken: float) -> None:
    """They are looked up before anybody knows."""
    tile = TILES[name](torch.full((2, VOCAB), broken), 0.7)
    for filters in ((0, 1.0, 0.0), (5, 0.9, 0.0), (5, 0.9, 0.01)):
        for temperature in (0.7, 0.0):
            processings = [Processing(temperature, *filters)] * 2
            ids_T, _, _ = tile.draw(processings, [1, 2], [0, 0], [5, 5])
            assert ((ids_T >= 0) & (ids_T < VOCAB)).all()
