"""Samples straight from hidden states: the reference's tokens on every route, in any company."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from scoring_service.kernels import dispatch, reference
from scoring_service.kernels.gpu import linear_head, linear_race, race
from scoring_service.kernels.gpu.linear import CHUNK_COLUMNS
from scoring_service.kernels.gpu.tile import words_inputs
from scoring_service.kernels.linear_logprobs import LinearHead
from scoring_service.kernels.linear_sample import linear_sample
from tests.kernels import cases
from tests.kernels.gpu.device import DEVICE
from tests.kernels.gpu.support import row_parameters
from tests.kernels.gpu.test_linear import random_head, x_of
from tests.kernels.gpu.test_race import keys_of, random_inputs

ROUTES = ["fused", "tiled", "eager"]

SLACK = 1e-5
"""Of x, whose sums have another order on every route."""


@pytest.fixture(autouse=True)
def triton_everywhere(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    """Supports of the tiled route come from the kernels."""
    if "eager" not in request.node.name:
        monkeypatch.setattr(dispatch, "backend", lambda _device: "triton")


def assert_the_references(
    drawn_T: Tensor, x_T_V: Tensor, keep_T_V: Tensor, inputs: tuple[list[int], ...]
) -> None:
    """The reference's tokens on float64 x, save where two keys are within the bound."""
    want_T = reference.draw(x_T_V, keep_T_V, *inputs)
    assert (drawn_T != want_T).sum() <= 1
    keys_T_V = keys_of(x_T_V, keep_T_V, inputs)
    lead_T = (keys_T_V.gather(1, drawn_T[:, None]) - keys_T_V.gather(1, want_T[:, None]))[:, 0]
    assert (lead_T <= 2 * (race.KEY_BOUND + SLACK)).all()


@pytest.mark.parametrize(
    ("route", "dtype", "vocab"),
    [
        ("fused", torch.float32, 1500),
        ("fused", torch.bfloat16, 17),
        ("fused", torch.float16, 2100),
        ("tiled", torch.bfloat16, 1500),
        ("eager", torch.float32, 1500),
    ],
)
def test_rows_without_filters(route: str, dtype: torch.dtype, vocab: int) -> None:
    """Bias, scale, soft-cap and a temperature a row."""
    rows = 7
    hidden_T_H, plain = random_head(rows, 64, vocab, dtype, biased=True)
    head = LinearHead(plain.weight_V_H, plain.bias_V, multiplier=1.5, soft_cap=20.0)
    temperature_T = torch.linspace(0.4, 2.0, rows, device=DEVICE)
    inputs = random_inputs(np.random.default_rng(vocab), rows)
    drawn_T = linear_sample(hidden_T_H, head, *inputs, temperature=temperature_T, route=route)
    x_T_V = x_of(hidden_T_H, head, temperature_T, torch.float64)
    assert_the_references(drawn_T, x_T_V, x_T_V > -math.inf, inputs)


def test_a_vocabulary_of_several_chunks() -> None:
    hidden_T_H, head = random_head(1, 64, 5000, torch.float32)
    inputs = random_inputs(np.random.default_rng(3), 1)
    drawn_T = linear_sample(hidden_T_H, head, *inputs, route="fused")
    x_T_V = x_of(hidden_T_H, head, torch.ones(1, device=DEVICE), torch.float64)
    assert_the_references(drawn_T, x_T_V, x_T_V > -math.inf, inputs)


@pytest.mark.parametrize("route", ROUTES)
def test_mixed_rows(route: str) -> None:
    """Every row has filters of its own or none, and its neighbours' change nothing."""
    rng = np.random.default_rng(5)
    rows, vocab = 9, 300
    hidden_T_H, head = random_head(rows, 64, vocab, torch.float32)
    settings = [
        cases.random_setting(rng, vocab) if row % 3 else cases.Setting() for row in range(rows)
    ]
    top_k_T, top_p_T, min_p_T = row_parameters(settings)
    temperature_T = torch.tensor([setting.temperature for setting in settings], device=DEVICE)
    inputs = random_inputs(rng, rows)

    def drawn(which: list[int]) -> Tensor:
        return linear_sample(
            hidden_T_H[which].contiguous(),
            head,
            *([column[row] for row in which] for column in inputs),
            temperature=temperature_T[which],
            top_k=top_k_T[which],
            top_p=top_p_T[which],
            min_p=min_p_T[which],
            route=route,
        )

    together_T = drawn(list(range(rows)))
    x_T_V = x_of(hidden_T_H, head, temperature_T, torch.float32)
    keep_T_V = torch.cat(
        [
            reference.support(x_T_V[row : row + 1], **setting.truncation)
            for row, setting in enumerate(settings)
        ]
    )
    assert_the_references(together_T, x_T_V, keep_T_V, inputs)
    order = [int(row) for row in rng.permutation(rows)]
    assert drawn(order).tolist() == together_T[order].tolist()
    assert drawn([0, 1]).tolist() == together_T[:2].tolist()


def test_bits_of_the_fused_route_in_any_company() -> None:
    """Keys, not tokens alone: more rows than a program's are split by nothing but their number."""
    hidden_T_H, head = random_head(70, 64, 1500, torch.float32)
    shard = linear_head.HeadShard(head.weight_V_H)
    inputs = words_inputs(*random_inputs(np.random.default_rng(6), 70), DEVICE)
    ones_T = torch.ones(70, device=DEVICE)

    def keys(part: slice) -> Tensor:
        given = (hidden_T_H[part], ones_T[part], *(column[part] for column in inputs))
        return linear_race.chunk_winners(shard, *given)[0]

    whole = keys(slice(0, 70))
    assert torch.equal(keys(slice(66, 67)), whole[66:67])
    assert torch.equal(keys(slice(3, 5)), whole[3:5])


def test_shards_of_a_tensor_parallel_head() -> None:
    """The token of the unsplit head, from shards that begin anywhere a counter does."""
    hidden_T_H, head = random_head(5, 64, 2500, torch.float32)
    inputs = random_inputs(np.random.default_rng(7), 5)
    ones_T = torch.ones(5, device=DEVICE)

    def winners(edges: list[int]) -> list[int]:
        parts = [
            linear_race.chunk_winners(
                linear_head.HeadShard(head.weight_V_H[first:last], first_id=first),
                hidden_T_H,
                ones_T,
                *words_inputs(*inputs, DEVICE),
            )
            for first, last in pairwise(edges)
        ]
        keys, ids = (torch.cat(side, dim=1) for side in zip(*parts, strict=True))
        return linear_race.winners(keys, ids).tolist()

    whole = winners([0, 2500])
    assert winners([0, CHUNK_COLUMNS, 2500]) == whole
    assert winners([0, 1500, 2500]) == whole
    with pytest.raises(ValueError, match="multiple of 4"):
        winners([0, 1501, 2500])


@pytest.mark.parametrize("route", ROUTES)
def test_a_row_that_is_no_distribution(route: str) -> None:
    """It is said, and its neighbours keep their tokens."""
    hidden_T_H, head = random_head(4, 64, 500, torch.float32)
    inputs = random_inputs(np.random.default_rng(8), 4)
    before = linear_sample(hidden_T_H, head, *inputs, route=route).tolist()
    hidden_T_H[2, 7] = math.nan
    after = linear_sample(hidden_T_H, head, *inputs, route=route).tolist()
    assert after == [*before[:2], -1, before[3]]


@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize(("token", "top_k"), [(499, 0), (3, 0), (250, 5)])
def test_one_token_that_is_nan(route: str, token: int, top_k: int) -> None:
    """A row is no distribution then, whichever tile of its columns the token is in."""
    hidden_T_H, head = random_head(3, 64, 2100, torch.float32)
    head.weight_V_H[token] = math.nan
    inputs = random_inputs(np.random.default_rng(8), 3)
    assert linear_sample(hidden_T_H, head, *inputs, top_k=top_k, route=route).tolist() == [-1] * 3


@pytest.mark.parametrize("route", ROUTES)
def test_no_rows(route: str) -> None:
    hidden_T_H, head = random_head(1, 64, 17, torch.float32)
    assert linear_sample(hidden_T_H[:0], head, [], [], [], route=route).shape == (0,)


@pytest.mark.parametrize("route", ROUTES)
def test_inside_autocast(route: str) -> None:
    """The tokens of the tensors' own types: bfloat16 logits over 0.3 draw others."""
    hidden_T_H, head = random_head(24, 64, 500, torch.float32)
    inputs = random_inputs(np.random.default_rng(10), 24)
    plain_T = linear_sample(hidden_T_H, head, *inputs, top_k=400, temperature=0.3, route=route)
    with torch.autocast(DEVICE.type, dtype=torch.bfloat16):
        mixed_T = linear_sample(hidden_T_H, head, *inputs, top_k=400, temperature=0.3, route=route)
    assert mixed_T.tolist() == plain_T.tolist()


class Largest(TorchDispatchMode):
    """The number of elements of the largest tensor of floats that torch made."""

    elements = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        # The interpreter looks at whole weights as bytes.
        if isinstance(made, Tensor) and made.is_floating_point():
            self.elements = max(self.elements, made.numel())
        return made


def test_the_fused_route_makes_no_logits() -> None:
    """More rows than a state has numbers, so that logits would be larger than the weight."""
    rows, vocab = 96, 1000
    hidden_T_H, head = random_head(rows, 64, vocab, torch.float32)
    inputs = random_inputs(np.random.default_rng(9), rows)
    for route, holds in (("fused", False), ("tiled", True)):
        with Largest() as largest:
            linear_sample(hidden_T_H, head, *inputs, route=route)
        assert (largest.elements >= rows * vocab) == holds


@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize(
    ("numbers", "named"),
    [
        (([-1], [0], [0]), f"seeds must be at least 0 and at most {2**64 - 1}, got -1"),
        (([2**64], [0], [0]), f"seeds must .*, got {2**64}"),
        (([2.5], [0], [0]), "seeds must be an integer, got 2.5"),
        (([1], [-1], [0]), "sample indices must be at least 0 and at most 4294967295, got -1"),
        (([1], [2**32], [0]), "sample indices must .*, got 4294967296"),
        (([1], [0], [2**32 + 1]), "positions must .*, got 4294967297"),
        (([1], [0], torch.tensor([2**40])), "positions must .*, got 1099511627776"),
    ],
)
def test_numbers_that_words_have_no_bits_for(
    route: str, numbers: tuple[Any, Any, Any], named: str
) -> None:
    """Else they would draw what another seed or position draws."""
    hidden_T_H, head = random_head(1, 64, 17, torch.float32)
    with pytest.raises(ValueError, match=named):
        linear_sample(hidden_T_H, head, *numbers, route=route)


@pytest.mark.parametrize("route", ROUTES)
def test_the_ends_of_the_ranges(route: str) -> None:
    """All bits of each count, on every route alike."""
    hidden_T_H, head = random_head(4, 64, 300, torch.float32)
    inputs = ([0, 2**64 - 1, 2**63, 1], [2**32 - 1, 0, 7, 2**31], [2**32 - 1, 2**31, 0, 1])
    drawn_T = linear_sample(hidden_T_H, head, *inputs, route=route)
    x_T_V = x_of(hidden_T_H, head, torch.ones(4, device=DEVICE), torch.float64)
    assert_the_references(drawn_T, x_T_V, x_T_V > -math.inf, inputs)
    arrays = (np.array(column, dtype=np.uint64) for column in inputs)
    assert torch.equal(linear_sample(hidden_T_H, head, *arrays, route=route), drawn_T)


@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"top_k": 2.9}, "top_k must be an integer, got 2.9"),
        ({"top_k": torch.tensor(3.7)}, "top_k must be an integer, got torch.float32"),
        ({"top_k": -2}, "top_k must be at least -1, got -2"),
        ({"temperature": math.inf}, "temperature must be above 0 and finite, got inf"),
        ({"temperature": 1e39}, "temperature must be above 0 and finite, got inf"),
    ],
)
def test_parameters_that_are_none(route: str, options: dict[str, Any], named: str) -> None:
    hidden_T_H, head = random_head(1, 64, 17, torch.float32)
    with pytest.raises(ValueError, match=named):
        linear_sample(hidden_T_H, head, [1], [0], [0], route=route, **options)


@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize("top_k", [17, 2**70, np.int64(40)])
def test_a_top_k_of_the_vocabulary_or_more_is_off(route: str, top_k: int) -> None:
    hidden_T_H, head = random_head(4, 64, 17, torch.float32)
    inputs = random_inputs(np.random.default_rng(11), 4)
    plain_T = linear_sample(hidden_T_H, head, *inputs, route=route)
    assert torch.equal(linear_sample(hidden_T_H, head, *inputs, top_k=top_k, route=route), plain_T)


def test_what_makes_no_sense() -> None:
    hidden_T_H, head = random_head(1, 64, 17, torch.float32)
    with pytest.raises(ValueError, match="sideways"):
        linear_sample(hidden_T_H, head, [1], [0], [0], route="sideways")
    with pytest.raises(ValueError, match="temperature must be above 0"):
        linear_sample(hidden_T_H, head, [1], [0], [0], temperature=0.0)
