"""Linear log-probs, fused and tiled, against float64; fp32 torch's own error is the bound."""

from __future__ import annotations

import weakref
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from scoring_service.kernels import linear_logprobs as linear_logprobs_module
from scoring_service.kernels import reference
from scoring_service.kernels.gpu import linear_head
from scoring_service.kernels.gpu.linear import CHUNK_COLUMNS
from scoring_service.kernels.gpu.partials import RowStatistics, join_shards
from scoring_service.kernels.gpu.rows import BLOCK_COLUMNS
from scoring_service.kernels.linear_logprobs import LinearHead, LinearLogprobs, linear_logprobs
from tests.kernels.gpu.device import DEVICE
from tests.kernels.gpu.test_tile import assert_as_good_as_eager, eager_entropy, random_ids

ROUTES = ["fused", "tiled"]


def random_head(
    rows: int, hidden: int, vocab: int, dtype: torch.dtype, biased: bool = False
) -> tuple[Tensor, LinearHead]:
    """Hidden states of unit size and a head that makes logits of about 2 of them."""
    generator = torch.Generator().manual_seed(rows * hidden + vocab)
    hidden_T_H = torch.randn(rows, hidden, generator=generator)
    weight_V_H = torch.randn(vocab, hidden, generator=generator) * 2 / hidden**0.5
    bias_V = torch.randn(vocab, generator=generator).to(DEVICE, dtype) if biased else None
    return hidden_T_H.to(DEVICE, dtype), LinearHead(weight_V_H.to(DEVICE, dtype), bias_V)


def x_of(hidden_T_H: Tensor, head: LinearHead, temperatures_T: Tensor, kind: torch.dtype) -> Tensor:
    """x in the given arithmetic."""
    x_T_V = hidden_T_H.to(kind) @ head.weight_V_H.to(kind).t()
    if head.bias_V is not None:
        x_T_V = x_T_V + head.bias_V.to(kind)
    x_T_V = x_T_V * head.multiplier
    if head.soft_cap is not None:
        x_T_V = torch.tanh(x_T_V / head.soft_cap) * head.soft_cap
    return x_T_V / temperatures_T.to(kind)[:, None]


def assert_numbers(
    got: LinearLogprobs,
    eager_T_V: Tensor,
    truth_T_V: Tensor,
    ids_T: Tensor,
    token_id_limit: int | None = None,
) -> None:
    lse_T = torch.logsumexp(truth_T_V, dim=1)
    assert_as_good_as_eager(got.logsumexp_T, torch.logsumexp(eager_T_V, dim=1), lse_T)
    eager_T = torch.log_softmax(eager_T_V, dim=1).gather(1, ids_T[:, None])[:, 0]
    truth_T = truth_T_V.gather(1, ids_T[:, None])[:, 0] - lse_T
    assert_as_good_as_eager(got.logprobs_T, eager_T, truth_T)
    p_T_V = torch.softmax(truth_T_V, dim=1)
    entropy_T = (p_T_V * (lse_T[:, None] - truth_T_V)).sum(dim=1)
    assert_as_good_as_eager(got.entropies_T, eager_entropy(eager_T_V), entropy_T)
    # Where two logits are a rounding apart, the products may order them either way.
    assert (got.ranks_T - reference.rank(truth_T_V, ids_T, token_id_limit)).abs().max() <= 1
    assert torch.equal(got.best_ids_T, reference.greedy(truth_T_V))


@pytest.mark.parametrize(
    ("rows", "hidden", "vocab"),
    [
        (1, 64, 17),
        (3, 64, 1000),
        (127, 64, 1000),
        (255, 64, 17),
        (3, 576, 5000),
        (1, 64, 49_152 if DEVICE.type == "cuda" else 8192),  # whole blocks; an interpreter is slow
        (1, 32, 151_936),
    ],
)
@pytest.mark.parametrize("route", ROUTES)
def test_shapes(rows: int, hidden: int, vocab: int, route: str) -> None:
    hidden_T_H, head = random_head(rows, hidden, vocab, torch.float32)
    ids_T = random_ids(rows, vocab)
    got = linear_logprobs(hidden_T_H, head, ids_T, route=route)
    ones_T = torch.ones(rows, device=DEVICE)
    eager_T_V = x_of(hidden_T_H, head, ones_T, torch.float32)
    assert_numbers(got, eager_T_V, x_of(hidden_T_H, head, ones_T, torch.float64), ids_T)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("route", [*ROUTES, "eager"])
def test_everything_a_head_can_have(route: str, dtype: torch.dtype) -> None:
    """Bias, scale, soft-cap, temperatures per row, candidates and a limit of ranks."""
    rows, vocab = 5, 1500
    hidden_T_H, plain = random_head(rows, 64, vocab, dtype, biased=True)
    head = LinearHead(plain.weight_V_H, plain.bias_V, multiplier=1.5, soft_cap=20.0)
    temperatures_T = torch.tensor([1.0, 0.5, 0.7, 1.3, 2.0], device=DEVICE)
    ids_T = random_ids(rows, vocab)
    candidates_T_C = torch.stack([random_ids(rows, vocab - c) for c in range(3)], dim=1)
    candidates_T_C[2, 1] = -1
    got = linear_logprobs(
        hidden_T_H,
        head,
        ids_T,
        temperatures=temperatures_T,
        candidate_ids_T_C=candidates_T_C,
        token_id_limit=1000,
        route=route,
    )
    eager_T_V = x_of(hidden_T_H, head, temperatures_T, torch.float32)
    truth_T_V = x_of(hidden_T_H, head, temperatures_T, torch.float64)
    assert_numbers(got, eager_T_V, truth_T_V, ids_T, token_id_limit=1000)
    lse_T = torch.logsumexp(truth_T_V, dim=1)
    asked_T_C = candidates_T_C >= 0
    assert got.candidate_logprobs_T_C is not None
    assert torch.equal(got.candidate_logprobs_T_C.isnan(), ~asked_T_C)
    truth_T_C = truth_T_V.gather(1, candidates_T_C.clamp(min=0)) - lse_T[:, None]
    eager_T_C = torch.log_softmax(eager_T_V, dim=1).gather(1, candidates_T_C.clamp(min=0))
    assert_as_good_as_eager(
        got.candidate_logprobs_T_C[asked_T_C], eager_T_C[asked_T_C], truth_T_C[asked_T_C]
    )


def test_one_tile_of_logits_exists_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two would be 1.3 % of the full logits at 8,192 rows of 151,936, where 1 % is promised."""
    made: list[weakref.ref[Tensor]] = []
    alive: list[int] = []

    def product(hidden_T_H: Tensor, weight_V_H: Tensor) -> Tensor:
        alive.append(sum(tile() is not None for tile in made))
        tile_T_V = hidden_T_H @ weight_V_H.t()
        made.append(weakref.ref(tile_T_V))
        return tile_T_V

    monkeypatch.setattr(linear_head, "_product", product)
    monkeypatch.setattr(linear_head, "_TILE_ROWS", 2)
    hidden_T_H, head = random_head(3, 16, 2 * BLOCK_COLUMNS + 1, torch.float32, biased=True)
    linear_logprobs(hidden_T_H, head, random_ids(3, 1000), route="tiled")
    assert alive == [0] * 6


def test_ranks_are_exact_among_equal_weights() -> None:
    """Copies of one token's weight row tie to the bit, and the lower ids come first."""
    hidden_T_H, head = random_head(4, 64, 2500, torch.bfloat16)
    weight_V_H = head.weight_V_H.clone()
    weight_V_H[[5, 700, 1300, 2400]] = weight_V_H[5].clone()
    ids_T = torch.tensor([5, 700, 1300, 2400], device=DEVICE)
    hidden_T_H[:] = hidden_T_H[0]
    ranks = linear_logprobs(hidden_T_H, LinearHead(weight_V_H), ids_T, route="fused").ranks_T
    assert (ranks - ranks[0]).tolist() == [0, 1, 2, 3]


def numbers_of_shards(
    route: str, edges: list[int], candidates_T_C: Tensor
) -> tuple[RowStatistics, Tensor]:
    """What the ranks of a tensor-parallel group make of rows, and x at candidates."""
    hidden_T_H, head = random_head(3, 64, edges[-1], torch.float32)
    ids_T, ones_T = candidates_T_C[:, 0], torch.ones(3, device=DEVICE)
    shards = [
        linear_head.HeadShard(head.weight_V_H[first:last], first_id=first)
        for first, last in pairwise(edges)
    ]
    found = [linear_head.logits_at(s, hidden_T_H, ones_T, candidates_T_C) for s in shards]
    # What an all-reduce does: every id is one shard's, and -inf on the others.
    logits_T_C, x_T_C = (torch.stack(side).amax(dim=0) for side in zip(*found, strict=True))
    partials, target_T = {
        "fused": (linear_head.fused_partials, x_T_C[:, 0]),
        "tiled": (linear_head.tiled_partials, logits_T_C[:, 0]),
    }[route]
    parts = [partials(s, hidden_T_H, ones_T, ids_T, target_T, edges[-1]) for s in shards]
    return join_shards(parts).combine(), x_T_C


@pytest.mark.parametrize(("route", "block"), [("fused", CHUNK_COLUMNS), ("tiled", BLOCK_COLUMNS)])
def test_shards_of_a_tensor_parallel_head_combine_exactly(route: str, block: int) -> None:
    """Shards that begin at whole blocks give the bits of the unsplit head, in every number."""
    vocab = 3 * block + 900
    candidates_T_C = torch.tensor([[10, block], [2 * block, 0], [vocab - 1, 5]], device=DEVICE)
    whole, whole_T_C = numbers_of_shards(route, [0, vocab], candidates_T_C)
    split, split_T_C = numbers_of_shards(route, [0, block, 3 * block, vocab], candidates_T_C)
    for name in type(whole).__slots__:
        assert torch.equal(getattr(whole, name), getattr(split, name)), name
    assert torch.equal(whole_T_C, split_T_C)


@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize(
    "edges",
    [
        [0, 2374, 4748, 7122, 9496],  # as eighths of 151,936 are: multiples of nothing that helps
        [0, 1, 5003, 9496],
    ],
)
def test_shards_of_any_size_combine(route: str, edges: list[int]) -> None:
    """Sums as good as eager's own against float64; ids are exact, ranks where x has one product."""
    vocab = edges[-1]
    candidates_T_C = torch.tensor(
        [[10, 2373, 2374], [4800, 0, vocab - 1], [vocab - 1, 7121, 7122]], device=DEVICE
    )
    got, x_T_C = numbers_of_shards(route, edges, candidates_T_C)
    hidden_T_H, head = random_head(3, 64, vocab, torch.float32)
    ones_T = torch.ones(3, device=DEVICE)
    eager_T_V = x_of(hidden_T_H, head, ones_T, torch.float32)
    truth_T_V = x_of(hidden_T_H, head, ones_T, torch.float64)
    lse_T = torch.logsumexp(truth_T_V, dim=1)
    assert_as_good_as_eager(got.logsumexp_T, torch.logsumexp(eager_T_V, dim=1), lse_T)
    truth_T_C = truth_T_V.gather(1, candidates_T_C) - lse_T[:, None]
    eager_T_C = torch.log_softmax(eager_T_V, dim=1).gather(1, candidates_T_C)
    got_T_C = x_T_C.double() - got.logsumexp_T[:, None]
    assert_as_good_as_eager(got_T_C, eager_T_C, truth_T_C)
    entropy_T = (truth_T_V.softmax(dim=1) * (lse_T[:, None] - truth_T_V)).sum(dim=1)
    assert_as_good_as_eager(got.entropy_T, eager_entropy(eager_T_V), entropy_T)
    assert torch.equal(got.best_T.long(), reference.greedy(truth_T_V))
    whole, whole_T_C = numbers_of_shards(route, [0, vocab], candidates_T_C)
    assert torch.equal(x_T_C, whole_T_C)
    assert (got.rank_T - whole.rank_T).abs().max() <= (0 if route == "fused" else 1)


@pytest.mark.parametrize("route", [*ROUTES, "eager"])
def test_a_broken_row_shows(route: str) -> None:
    """Also when only the fused kernel has seen its logits."""
    hidden_T_H, head = random_head(3, 64, 1000, torch.float32)
    hidden_T_H[1, 3] = torch.nan
    found = linear_logprobs(hidden_T_H, head, random_ids(3, 1000), route=route)
    assert torch.isfinite(found.logsumexp_T).tolist() == [True, False, True]
    assert torch.isfinite(found.logprobs_T).tolist() == [True, False, True]
    assert ((found.best_ids_T >= 0) & (found.best_ids_T < 1000)).all()


@pytest.mark.parametrize("route", [*ROUTES, "eager"])
@pytest.mark.parametrize("token", [3, 999])
def test_one_token_that_is_nan(route: str, token: int) -> None:
    """Every number of sums says so; ids mean nothing, but are ids."""
    hidden_T_H, head = random_head(3, 64, 1000, torch.float32)
    head.weight_V_H[token] = torch.nan
    found = linear_logprobs(hidden_T_H, head, torch.full((3,), 10, device=DEVICE), route=route)
    for numbers_T in (found.logsumexp_T, found.logprobs_T, found.entropies_T):
        assert numbers_T.isnan().all()
    assert ((found.best_ids_T >= 0) & (found.best_ids_T < 1000)).all()


@pytest.mark.parametrize("route", [*ROUTES, "eager"])
def test_negative_targets(route: str) -> None:
    """As negative candidates: not asked. The others' numbers are as they were."""
    hidden_T_H, head = random_head(4, 64, 100, torch.float32)
    ids_T = random_ids(4, 100)
    want = linear_logprobs(hidden_T_H, head, ids_T, route=route)
    ids_T[0], ids_T[2] = -1, -100
    found = linear_logprobs(hidden_T_H, head, ids_T, route=route)
    assert found.logprobs_T.isnan().tolist() == [True, False, True, False]
    assert torch.equal(found.logprobs_T[1::2], want.logprobs_T[1::2])
    assert found.ranks_T.tolist() == [0, want.ranks_T[1].item(), 0, want.ranks_T[3].item()]
    assert torch.equal(found.entropies_T, want.entropies_T)


@pytest.mark.parametrize("route", [*ROUTES, "eager"])
def test_no_rows(route: str) -> None:
    hidden_T_H, head = random_head(1, 64, 17, torch.float32)
    none_T = torch.empty(0, dtype=torch.int64, device=DEVICE)
    candidates_1_C = torch.tensor([[1, 2]], device=DEVICE)
    found = linear_logprobs(
        hidden_T_H[:0], head, none_T, candidate_ids_T_C=candidates_1_C, route=route
    )
    assert found.logprobs_T.shape == found.ranks_T.shape == found.best_ids_T.shape == (0,)
    assert found.candidate_logprobs_T_C is not None
    assert found.candidate_logprobs_T_C.shape == (0, 2)


@pytest.mark.skipif(DEVICE.type == "cuda", reason="a GPU's kernels are not waited for")
@pytest.mark.parametrize("route", [*ROUTES, "eager"])
def test_ids_outside_the_vocabulary(route: str) -> None:
    hidden_T_H, head = random_head(2, 64, 17, torch.float32)
    inside_T, outside_T = torch.tensor([1, 2]), torch.tensor([1, 17])
    with pytest.raises(ValueError, match="id 17 is outside the vocabulary of 17"):
        linear_logprobs(hidden_T_H, head, outside_T, route=route)
    with pytest.raises(ValueError, match="id 17 is outside the vocabulary of 17"):
        linear_logprobs(
            hidden_T_H, head, inside_T, candidate_ids_T_C=outside_T[:, None], route=route
        )


@pytest.mark.parametrize("route", ROUTES)
def test_ids_that_are_not_looked_at(route: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a GPU: what is no token has no probability, not even 0, and takes nobody's place."""
    monkeypatch.setattr(linear_logprobs_module, "check_ids", lambda *_: None)
    hidden_T_H, head = random_head(4, 64, 100, torch.float32)
    ids_T = random_ids(4, 100)
    want = linear_logprobs(hidden_T_H, head, ids_T, candidate_ids_T_C=ids_T[:, None], route=route)
    ids_T[0], ids_T[2] = 100, 2**32 + 3
    found = linear_logprobs(hidden_T_H, head, ids_T, candidate_ids_T_C=ids_T[:, None], route=route)
    assert found.candidate_logprobs_T_C is not None
    for logprobs_T in (found.logprobs_T, found.candidate_logprobs_T_C[:, 0]):
        assert logprobs_T.isnan().tolist() == [True, False, True, False]
    assert torch.equal(found.logprobs_T[1::2], want.logprobs_T[1::2])
    assert found.ranks_T.tolist() == [0, want.ranks_T[1].item(), 0, want.ranks_T[3].item()]


@pytest.mark.parametrize("route", [*ROUTES, "eager"])
def test_inside_autocast(route: str) -> None:
    """A caller's mixed precision is for the layers before the head."""
    hidden_T_H, head = random_head(3, 64, 500, torch.float32)
    ids_T = random_ids(3, 500)
    plain = linear_logprobs(hidden_T_H, head, ids_T, route=route)
    with torch.autocast(DEVICE.type, dtype=torch.bfloat16):
        mixed = linear_logprobs(hidden_T_H, head, ids_T, route=route)
    assert torch.equal(mixed.logsumexp_T, plain.logsumexp_T)
    assert torch.equal(mixed.logprobs_T, plain.logprobs_T)


def test_a_route_that_is_none() -> None:
    hidden_T_H, head = random_head(1, 64, 17, torch.float32)
    with pytest.raises(ValueError, match="sideways"):
        linear_logprobs(hidden_T_H, head, random_ids(1, 17), route="sideways")
