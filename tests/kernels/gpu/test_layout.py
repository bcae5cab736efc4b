"""Tensors whose numbers are not side by side: the same results as those of copies, or an error."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from scoring_service.kernels import dispatch, reference
from scoring_service.kernels.gpu import linear_head
from scoring_service.kernels.gpu.gradient import gradient_of_logits
from scoring_service.kernels.gpu.tile import TritonTile
from scoring_service.kernels.linear_logprobs import LinearHead, linear_logprobs
from scoring_service.kernels.linear_sample import linear_sample
from scoring_service.kernels.prefix import Prefix
from tests.kernels.gpu.device import DEVICE
from tests.kernels.gpu.test_linear import ROUTES, random_head
from tests.kernels.gpu.test_race import random_inputs
from tests.kernels.gpu.test_tile import random_ids, random_logits

ROWS, VOCAB = 5, 300


def every_second(tensor: Tensor) -> Tensor:
    """The same numbers, with others between them."""
    return torch.stack([tensor, tensor.flip(0)], dim=-1)[..., 0]


def transposed(tensor: Tensor) -> Tensor:
    """The same numbers, columns one after another in memory."""
    return tensor.t().contiguous().t()


@pytest.fixture
def triton_everywhere(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dispatch, "backend", lambda _device: "triton")


@pytest.mark.parametrize("route", [*ROUTES, "eager"])
@pytest.mark.parametrize("strided", ["hidden", "targets", "temperatures", "candidates", "bias"])
def test_log_probs(route: str, strided: str) -> None:
    hidden_T_H, head = random_head(ROWS, 64, VOCAB, torch.float32, biased=True)
    assert head.bias_V is not None
    given: dict[str, Tensor] = {
        "hidden": hidden_T_H,
        "targets": random_ids(ROWS, VOCAB),
        "temperatures": torch.linspace(0.5, 2.0, ROWS, device=DEVICE),
        "candidates": random_ids(ROWS * 2, VOCAB).reshape(ROWS, 2),
        "bias": head.bias_V,
    }

    def numbers(hidden: Tensor, targets: Tensor, **others: Tensor) -> list[Tensor]:
        found = linear_logprobs(
            hidden,
            LinearHead(head.weight_V_H, others["bias"]),
            targets,
            temperatures=others["temperatures"],
            candidate_ids_T_C=others["candidates"],
            route=route,
        )
        assert found.candidate_logprobs_T_C is not None
        return [found.logprobs_T, found.ranks_T, found.entropies_T, found.candidate_logprobs_T_C]

    want = numbers(**given)
    given[strided] = (transposed if given[strided].ndim == 2 else every_second)(given[strided])
    assert not given[strided].is_contiguous()
    for ours, theirs in zip(numbers(**given), want, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)


@pytest.mark.parametrize("route", [*ROUTES, "eager"])
def test_one_temperature_for_all_rows(route: str) -> None:
    """As `expand` has it: one number in memory, however many rows there are."""
    hidden_T_H, head = random_head(ROWS, 64, VOCAB, torch.float32)
    ids_T = random_ids(ROWS, VOCAB)
    half_T = torch.tensor(0.5, device=DEVICE).expand(ROWS)
    got, want = (
        linear_logprobs(hidden_T_H, head, ids_T, temperatures=given, route=route)
        for given in (half_T, 0.5)
    )
    assert torch.equal(got.logprobs_T, want.logprobs_T)
    assert torch.isfinite(got.logprobs_T).all()


@pytest.mark.usefixtures("triton_everywhere")
@pytest.mark.parametrize("route", ROUTES)
def test_a_weight_is_not_copied_in_silence(route: str) -> None:
    hidden_T_H, head = random_head(ROWS, 64, VOCAB, torch.float32)
    turned = LinearHead(transposed(head.weight_V_H))
    with pytest.raises(ValueError, match="side by side"):
        linear_logprobs(hidden_T_H, turned, random_ids(ROWS, VOCAB), route=route)
    with pytest.raises(ValueError, match="side by side"):
        linear_sample(hidden_T_H, turned, *[[1] * ROWS] * 3, route=route)
    # Rows of a larger weight are side by side: how far apart they are is known.
    wide = LinearHead(torch.cat([head.weight_V_H, head.weight_V_H], dim=1)[:, :64])
    got, want = (
        linear_logprobs(hidden_T_H, one, random_ids(ROWS, VOCAB), route=route)
        for one in (wide, head)
    )
    assert torch.equal(got.logprobs_T, want.logprobs_T)


@pytest.mark.usefixtures("triton_everywhere")
@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize("top_k", [0, 20])
def test_samples(route: str, top_k: int) -> None:
    hidden_T_H, head = random_head(ROWS, 64, VOCAB, torch.float32, biased=True)
    assert head.bias_V is not None
    temperature_T = torch.linspace(0.5, 2.0, ROWS, device=DEVICE)
    inputs = random_inputs(np.random.default_rng(2), ROWS)
    want_T = linear_sample(
        hidden_T_H, head, *inputs, temperature=temperature_T, top_k=top_k, route=route
    )
    got_T = linear_sample(
        transposed(hidden_T_H),
        LinearHead(head.weight_V_H, every_second(head.bias_V)),
        *inputs,
        temperature=every_second(temperature_T),
        top_k=every_second(torch.full((ROWS,), top_k, device=DEVICE)),
        route=route,
    )
    assert torch.equal(got_T, want_T)


def test_tiles() -> None:
    """Logits, temperatures, targets, parameters and the numbers of words."""
    logits_T_V, ids_T = random_logits(ROWS, VOCAB), random_ids(ROWS, VOCAB)
    temperature_T = torch.linspace(0.5, 2.0, ROWS, device=DEVICE)
    top_k_T = torch.tensor([3, 0, 7, 50, 1], device=DEVICE)
    p_T = torch.linspace(0.3, 0.9, ROWS, dtype=torch.float64, device=DEVICE)
    words = [torch.arange(first, first + ROWS, device=DEVICE) for first in (11, 0, 5)]

    def numbers(change: Callable[[Tensor], Tensor], logits: Tensor, **options: Any) -> list[Tensor]:
        tile = TritonTile(logits, change(temperature_T), targets_T=change(ids_T), **options)
        found = tile.support(change(top_k_T), change(p_T), change(p_T / 100))
        drawn_T = tile.draw_from(found, *(change(column) for column in words))
        return [tile.logsumexp_T, tile.rank_of_targets(), found.pivots_T, drawn_T, tile.x_T_V]

    want = numbers(torch.clone, logits_T_V.clone())
    for options in ({}, {"overwrite": True}):
        for logits in (transposed(logits_T_V.clone()), every_second(logits_T_V)):
            for ours, theirs in zip(numbers(every_second, logits, **options), want, strict=True):
                assert torch.equal(ours, theirs)
    one_T_V = logits_T_V[:1].clone().expand(ROWS, VOCAB)
    shared = TritonTile(one_T_V, temperature_T, overwrite=True)
    torch.testing.assert_close(shared.x_T_V, one_T_V / temperature_T[:, None], rtol=0, atol=0)


def test_gradients_of_logits() -> None:
    logits_T_V, labels_T = random_logits(ROWS, VOCAB), random_ids(ROWS, VOCAB)
    upstream_T = torch.linspace(0.5, 1.5, ROWS, device=DEVICE)
    found = Prefix(
        torch.full((ROWS,), -math.inf, device=DEVICE),
        torch.full((ROWS,), VOCAB, device=DEVICE),
        reference.logsumexp(logits_T_V),
    )
    want_T_V = upstream_T[:, None] * -torch.softmax(logits_T_V.double(), dim=1)
    want_T_V[torch.arange(ROWS), labels_T] += upstream_T
    head = LinearHead(torch.empty(VOCAB, 1, device=DEVICE))
    one_T = torch.ones(1, device=DEVICE).expand(ROWS)
    spread = Prefix(*map(every_second, (found.least_x_T, found.least_id_T, found.log_total_T)))
    given = (head, one_T, every_second(labels_T), spread, every_second(upstream_T), True)
    got_T_V = gradient_of_logits(logits_T_V.clone(), *given)
    assert (got_T_V - want_T_V).abs().max() <= 1e-5
    with pytest.raises(ValueError, match="side by side"):
        gradient_of_logits(transposed(logits_T_V), *given)


@pytest.mark.parametrize("route", [*ROUTES, "eager"])
def test_what_does_not_fit_is_refused(route: str) -> None:
    hidden_T_H, head = random_head(ROWS, 64, VOCAB, torch.float32)
    ids_T, weight_V_H = random_ids(ROWS, VOCAB), head.weight_V_H

    def refused(match: str, *given: Any, **options: Any) -> None:
        with pytest.raises(ValueError, match=match):
            linear_logprobs(*given, **options, route=route)

    refused("shapes", hidden_T_H, head, ids_T[:3])
    refused("shapes", hidden_T_H[:, :32], head, ids_T)
    refused("bias", hidden_T_H, LinearHead(weight_V_H, torch.zeros(3, device=DEVICE)), ids_T)
    refused("states and weight are", hidden_T_H.half(), head, ids_T)
    refused("states and weight are", hidden_T_H.double(), LinearHead(weight_V_H.double()), ids_T)
    refused("parameter", hidden_T_H, head, ids_T, temperatures=torch.ones(3, device=DEVICE))
    with pytest.raises(ValueError, match="seeds"):
        linear_sample(hidden_T_H, head, [1], [0], [0], route=route)


def test_kernels_that_are_asked_by_themselves_refuse_it_too() -> None:
    hidden_T_H, head = random_head(ROWS, 64, VOCAB, torch.float32)
    ids_T, ones_T = random_ids(ROWS, VOCAB), torch.ones(ROWS, device=DEVICE)
    shard = linear_head.HeadShard(head.weight_V_H)
    with pytest.raises(ValueError, match="5 rows"):
        linear_head.logits_at(shard, hidden_T_H, ones_T[:1], ids_T[:, None])
    with pytest.raises(ValueError, match="4 lists of ids for 5 rows"):
        linear_head.logits_at(shard, hidden_T_H, ones_T[:4], ids_T[:4, None])
    for partials in (linear_head.fused_partials, linear_head.tiled_partials):
        with pytest.raises(ValueError, match="5 rows"):
            partials(shard, hidden_T_H, ones_T, ids_T[:2], ones_T, VOCAB)
    with pytest.raises(ValueError, match="integers"):
        TritonTile(random_logits(ROWS, VOCAB)).support(ones_T * 2, 1.0, 0.0)
