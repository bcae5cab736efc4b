"""Numbers of a Triton tile against float64, with the eager fp32 reference's own error as the bound.

Ids, ranks and supports have to be the reference's; the numbers may err as much as plain fp32 torch
does, plus 1e-5.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from scoring_service.kernels import reference
from scoring_service.kernels.gpu.tile import TritonTile
from scoring_service.types import Processing
from tests.kernels import cases, oracle
from tests.kernels.gpu.device import DEVICE
from tests.kernels.gpu.support import assert_like_reference

SLACK = 1e-5
SHAPES = [(1, 17), (3, 1000), (127, 17), (255, 1000), (3, 49_152), (1, 151_936)]
DTYPES = [torch.float32, torch.bfloat16, torch.float16]


def random_logits(rows: int, vocab: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Logits of all levels and spreads; bf16 and fp16 ones have many ties."""
    rng = np.random.default_rng(rows * vocab)
    spread = rng.uniform(0.5, 5.0, size=(rows, 1))
    level = rng.uniform(-20, 20, size=(rows, 1))
    values = rng.normal(size=(rows, vocab)) * spread + level
    return torch.from_numpy(values).to(dtype).to(DEVICE)


def random_ids(rows: int, vocab: int) -> Tensor:
    rng = np.random.default_rng(vocab)
    return torch.from_numpy(rng.integers(vocab, size=rows)).to(DEVICE)


def assert_as_good_as_eager(got: Tensor, eager: Tensor, truth: Tensor) -> None:
    """The error against float64 is at most that of fp32 torch, plus 1e-5."""
    eager_error = (eager.double() - truth).abs().max()
    error = (got.double() - truth).abs().max()
    assert error <= eager_error + SLACK, f"{error} where eager has {eager_error}"


def eager_entropy(x_T_V: Tensor) -> Tensor:
    logprobs_T_V = torch.log_softmax(x_T_V, dim=1)
    return torch.special.entr(logprobs_T_V.exp()).sum(dim=1)


@pytest.mark.parametrize(("rows", "vocab"), SHAPES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_statistics(rows: int, vocab: int, dtype: torch.dtype) -> None:
    """logsumexp, log-probs, entropy, rank and best token of one read."""
    if dtype != torch.float32 and rows > 3:
        rows = 3
    logits_T_V, ids_T = random_logits(rows, vocab, dtype), random_ids(rows, vocab)
    tile = TritonTile(logits_T_V, targets_T=ids_T)
    x_T_V = logits_T_V.float()
    truth_T_V = x_T_V.double()
    lse_T = torch.logsumexp(truth_T_V, dim=1)
    assert_as_good_as_eager(tile.logsumexp_T, torch.logsumexp(x_T_V, dim=1), lse_T)
    logprobs_T = tile.logprobs_at(ids_T[:, None])[:, 0]
    eager_T = torch.log_softmax(x_T_V, dim=1).gather(1, ids_T[:, None])[:, 0]
    assert_as_good_as_eager(
        logprobs_T, eager_T, (truth_T_V.gather(1, ids_T[:, None])[:, 0] - lse_T)
    )
    p_T_V = torch.softmax(truth_T_V, dim=1)
    truth_T = (p_T_V * (lse_T[:, None] - truth_T_V)).sum(dim=1)
    assert_as_good_as_eager(tile.entropy(), eager_entropy(x_T_V), truth_T)
    assert torch.equal(tile.rank(ids_T, None), reference.rank(x_T_V, ids_T))
    assert torch.equal(tile.greedy(), reference.greedy(x_T_V))


@pytest.mark.parametrize("dtype", DTYPES)
def test_scale_soft_cap_and_temperatures_per_row(dtype: torch.dtype) -> None:
    """x is the model's own logits divided by each row's temperature, and stands in one tile."""
    rows, vocab = 5, 1000
    logits_T_V = random_logits(rows, vocab, dtype)
    temperatures_T = torch.tensor([1.0, 0.3, 0.7, 1.3, 2.0], device=DEVICE)
    ids_T = random_ids(rows, vocab)
    tile = TritonTile(
        logits_T_V, temperatures_T, multiplier=1.7, soft_cap=30.0, targets_T=ids_T, overwrite=True
    )

    def finished(logits: Tensor) -> Tensor:
        return torch.tanh(logits * 1.7 / 30.0) * 30.0 / temperatures_T[:, None].to(logits.dtype)

    source_T_V = random_logits(rows, vocab, dtype)
    truth_T_V = finished(source_T_V.double())
    eager_T_V = finished(source_T_V.float())
    assert_as_good_as_eager(tile.x_T_V, eager_T_V, truth_T_V)
    truth_T = torch.logsumexp(truth_T_V, dim=1)
    assert_as_good_as_eager(tile.logsumexp_T, torch.logsumexp(eager_T_V, dim=1), truth_T)
    assert torch.equal(tile.rank(ids_T, None), reference.rank(tile.x_T_V, ids_T))
    if dtype == torch.float32:
        assert tile.x_T_V.data_ptr() == logits_T_V.data_ptr()


def test_tanh_of_a_soft_cap() -> None:
    """Right to 2 units in the last place; by a GPU's own exponential and division to 5."""
    y_T_V = torch.linspace(-9.5, 9.5, 40_000, device=DEVICE)[None]
    found_V = TritonTile(y_T_V, soft_cap=1.0).x_T_V[0].cpu().double().numpy()
    truth_V = np.tanh(y_T_V[0].cpu().double().numpy())
    units_V = np.abs(found_V - truth_V) / np.spacing(np.abs(truth_V).astype(np.float32))
    assert units_V.max() <= (5 if DEVICE.type == "cuda" else 2)


@pytest.mark.parametrize("temperature", [0.3, 0.7, 1.3])
def test_x_has_the_bits_of_torch(temperature: float) -> None:
    """Ties and orders are defined on x as fp32 divides it: nothing may be a bit off."""
    logits_T_V = random_logits(3, 5000)
    tile = TritonTile(logits_T_V, cases.promoted(temperature))
    assert torch.equal(tile.x_T_V, reference.scale(logits_T_V, cases.promoted(temperature)))


def test_logits_of_another_temperature_stay() -> None:
    logits_T_V = random_logits(2, 100)
    before = logits_T_V.clone()
    TritonTile(logits_T_V, 0.5)
    assert torch.equal(logits_T_V, before)


@pytest.mark.parametrize("broken", [math.nan, math.inf])
def test_a_row_that_is_no_distribution_shows(broken: float) -> None:
    """Its logsumexp is not finite, and its neighbours do not mind."""
    logits_T_V = random_logits(3, 1000)
    logits_T_V[1, 500] = broken
    finite_T = torch.isfinite(TritonTile(logits_T_V).logsumexp_T)
    assert finite_T.tolist() == [True, False, True]
    banned = torch.full((1, 1000), -math.inf, device=DEVICE)
    assert not torch.isfinite(TritonTile(banned).logsumexp_T).any()


@pytest.mark.parametrize("k", [1, 20, 300])
def test_ids_of_broken_rows_exist(k: int) -> None:
    """They mean nothing, but are looked up: an id past the end would cost a GPU's process."""
    rng = np.random.default_rng(k)
    rows = np.stack([cases.continuous(rng, 1000) for _ in range(5)])
    rows[0] = math.nan
    rows[1] = -math.nan
    rows[2, ::2] = math.nan
    rows[3] = math.inf
    rows[4] = -math.inf
    tile = TritonTile(torch.from_numpy(rows).to(DEVICE))
    for ids in (tile.top_k_ids(k, 1000), tile.greedy()):
        assert ((ids >= 0) & (ids < 1000)).all()
    assert not torch.isfinite(tile.logsumexp_T).any()


@pytest.mark.parametrize(("rows", "vocab", "k"), [
    (1, 17, 1), (3, 17, 17), (3, 1000, 2), (2, 1000, 1000), (3, 49_152, 50), (2, 49_152, 1000),
    (1, 151_936, 50),
])  # fmt: skip
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_top_k(rows: int, vocab: int, k: int, dtype: torch.dtype) -> None:
    """The list to the id, ties to the lower one; the tail's mass within 1e-5 of float64."""
    logits_T_V = random_logits(rows, vocab, dtype)
    tile = TritonTile(logits_T_V)
    ids_T_K = tile.top_k_ids(k, vocab)
    assert torch.equal(ids_T_K, reference.top_k_ids(logits_T_V.float(), k))
    tails = tile.log_tail_mass(ids_T_K).tolist()
    for x_V, ids_K, tail in zip(logits_T_V.float().cpu(), ids_T_K.cpu(), tails, strict=True):
        want = oracle.log_tail_mass(x_V.numpy(), ids_K.numpy())
        assert tail == want or abs(math.expm1(tail - want)) <= SLACK


@pytest.mark.parametrize("limit", [1, 31, 33, 500, 999])
def test_top_k_below_a_limit(limit: int) -> None:
    """Ids past the limit are in no list, even where their group's maximum is theirs."""
    logits_T_V = random_logits(3, 1000)
    logits_T_V[:, limit] += 100
    tile = TritonTile(logits_T_V)
    for k in {1, min(3, limit), limit}:
        ids_T_K = tile.top_k_ids(k, limit)
        assert torch.equal(ids_T_K, reference.top_k_ids(logits_T_V[:, :limit], k))
        tail_T = reference.log_tail_mass(logits_T_V, reference.logsumexp(logits_T_V), ids_T_K)
        assert torch.allclose(tile.log_tail_mass(ids_T_K), tail_T, atol=SLACK)


@pytest.mark.parametrize("block", range(4))
def test_mixed_rows_of_any_kind(block: int) -> None:
    """Every row of a launch has parameters of its own, and ties, bans and knife edges abound."""
    rng = np.random.default_rng(block)
    for vocab in (1, 2, 17, 1000):
        rows = [cases.random_row(rng, vocab) for _ in range(6)]
        x_T_V = torch.from_numpy(np.stack(rows)).to(DEVICE)
        assert_like_reference(x_T_V, [cases.random_setting(rng, vocab) for _ in rows])


@pytest.mark.parametrize(
    "setting",
    [
        cases.Setting(top_p=cases.promoted(0.9)),
        cases.Setting(top_k=20_000, top_p=cases.promoted(0.5), min_p=cases.promoted(1e-4)),
        cases.Setting(min_p=cases.promoted(0.05)),
    ],
)
def test_supports_of_a_real_vocabulary(setting: cases.Setting) -> None:
    """Wider than a row's list: the search goes over the row itself before it lists what is left."""
    x_T_V = random_logits(1, 151_936)
    assert_like_reference(x_T_V, [setting])


def test_a_row_of_one_value() -> None:
    """More ties than any list holds."""
    x_T_V = torch.full((2, 10_000), 1.5, device=DEVICE)
    x_T_V[1, ::2] = 0.5
    assert_like_reference(x_T_V, [cases.Setting(top_p=0.25), cases.Setting(top_k=7, top_p=0.5)])
    ids_T_K = TritonTile(x_T_V).top_k_ids(300, 10_000)
    assert torch.equal(ids_T_K, reference.top_k_ids(x_T_V, 300))


TRUNCATED = Processing(top_k=20, top_p=0.8, min_p=0.01)


@pytest.mark.parametrize("keep_realised", [False, True])
def test_processed_logprobs(keep_realised: bool) -> None:
    """Inside the support, outside it, and outside it with the label guard."""
    rng = np.random.default_rng(3)
    x_T_V = torch.from_numpy(np.stack([cases.random_row(rng, 500) for _ in range(12)])).to(DEVICE)
    best_T = reference.greedy(x_T_V)
    ids_T = torch.where(torch.arange(12, device=DEVICE) % 2 == 0, best_T, random_ids(12, 500))
    guarded_T = torch.full((12,), keep_realised, device=DEVICE)
    found = TritonTile(x_T_V).truncate([TRUNCATED] * 12, ids_T, guarded_T)
    for row, x_V in enumerate(x_T_V.cpu().numpy()):
        token = int(ids_T[row])
        keep_V = oracle.support(x_V, 20, 0.8, 0.01)
        keep_V[token] |= keep_realised and x_V[token] > -math.inf
        assert found.sizes_T[row] == keep_V.sum() + (keep_realised and x_V[token] == -math.inf)
        want = float(oracle.processed_logprobs(x_V, keep_V)[token])
        got = float(found.processed_T[row])
        assert got == want or abs(got - want) <= SLACK


class Largest(TorchDispatchMode):
    """Notes the elements of the largest tensor that an operator makes."""

    elements = 0

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        made = function(*args, **(kwargs or {}))
        if isinstance(made, Tensor):
            self.elements = max(self.elements, made.numel())
        return made


@pytest.mark.parametrize("dtype", DTYPES)
def test_possible_tokens_are_counted_in_the_read_of_the_tile(dtype: torch.dtype) -> None:
    """Of bans, of a row without any, of one of nothing else, and of NaN; without another [T, V]."""
    rows, vocab = 5, 10_000
    logits_T_V = random_logits(rows, vocab, dtype)
    logits_T_V[1, ::3] = -math.inf
    logits_T_V[2] = -math.inf
    logits_T_V[3, :8192] = -math.inf
    logits_T_V[4, 7] = math.nan
    want = [vocab, vocab - len(range(0, vocab, 3)), 0, vocab - 8192, vocab - 1]
    for temperature in (1.0, 0.5):
        tile = TritonTile(logits_T_V, temperature)
        with Largest() as largest:
            found_T = tile.possible_tokens()
        assert found_T.dtype == torch.int32
        assert found_T.tolist() == want
        assert largest.elements <= rows * 3
