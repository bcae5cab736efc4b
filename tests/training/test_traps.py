"""What trainers got wrong. Each wrong variant shipped somewhere; here it must be caught by the very
check that this package passes."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from scoring_client import ScoringClient
from scoring_client.losses import forward_kl, teacher_rows
from scoring_client.replay import linear_processed_logprobs, processed_logprobs
from tests.client.toy_server import ToyServer
from tests.kernels import oracle

ROWS, HIDDEN, VOCAB, K = 40, 16, 96, 5


def caught(check: Callable[[Any], None], wrong: Any) -> None:
    with pytest.raises((AssertionError, pytest.fail.Exception)):
        check(wrong)


def head() -> tuple[Tensor, Tensor, Tensor]:
    """Its input [T, H], its weight [V, H], and a label for each row, of the top-k."""
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(ROWS, HIDDEN, generator=generator)
    weight = torch.randn(VOCAB, HIDDEN, generator=generator)
    ids = (hidden @ weight.t()).topk(K, dim=1).indices
    return hidden, weight, ids[torch.arange(ROWS), torch.arange(ROWS) % K]


def thresholds_of_tiles(hidden: Tensor, weight: Tensor, labels: Tensor, **_: int) -> Tensor:
    """A head computed tile by tile, which takes the k-th largest of each tile for the k-th."""
    x = hidden @ weight.t()
    kth = x.reshape(ROWS, -1, 16).topk(K, dim=2).values[..., -1:]
    keep = (x.reshape(ROWS, -1, 16) >= kth).reshape(ROWS, VOCAB)
    kept = x.masked_fill(~keep, -math.inf)
    return kept.gather(1, labels[:, None])[:, 0] - kept.logsumexp(dim=1)


def test_a_fused_head_does_not_know_the_global_threshold() -> None:
    hidden, weight, labels = head()
    logits = (hidden @ weight.t()).numpy()

    def check(replay: Callable[..., Tensor]) -> None:
        ours = replay(hidden, weight, labels, top_k=K).tolist()
        for row, label in enumerate(labels.tolist()):
            x_V = oracle.scaled(logits[row], 1.0)
            expected = oracle.processed_logprobs(x_V, oracle.support(x_V, K))[label]
            assert ours[row] == pytest.approx(expected, abs=1e-5)

    check(linear_processed_logprobs)
    caught(check, thresholds_of_tiles)


def test_the_trainers_rounding_moves_a_drawn_token_out_of_the_top_k() -> None:
    """The sampler drew the K-th token; in bfloat16 the next one is before it. The loss stays
    finite."""
    sampler = torch.linspace(3, 0, VOCAB)
    sampler[K - 1], sampler[K] = 2.001, 2.0
    trainer = sampler.clone()
    trainer[K - 1], trainer[K] = trainer[K].item(), 2.0156  # neighbours in bfloat16
    assert torch.equal(trainer[K - 1 : K + 1].bfloat16().float(), torch.tensor([2.0, 2.015625]))
    label = torch.tensor([K - 1])

    def check(guard: bool) -> None:
        drawn = processed_logprobs(sampler[None], label, top_k=K)
        own = processed_logprobs(trainer[None], label, top_k=K, keep_labels=guard)
        assert torch.isfinite(-(own - drawn).exp() * own).all()

    check(True)
    caught(check, False)


def test_temperature_0_is_taken_by_one_side_alone() -> None:
    """The server draws greedily at 0 and scores nothing there; a replay of it is refused, too."""
    hidden, weight, labels = head()
    logits = hidden @ weight.t()

    def check(replay: Callable[..., Tensor]) -> None:
        with pytest.raises(ValueError, match="greedy sample has no distribution to replay"):
            replay(logits, labels, temperature=0.0)

    check(processed_logprobs)
    caught(check, lambda x, y, temperature: processed_logprobs(x, y, temperature=temperature or 1))


def test_a_step_trains_with_another_objective() -> None:
    """Where the teacher's list is missing there is no distillation, and nothing in its place."""
    with ToyServer() as server, ScoringClient(server.target) as client:
        scores = client.score([([1, 2], [[3, 4, 5]])]).completions()
    logits = torch.zeros(3, 258)

    def distilled(scores: Any) -> Tensor:
        return forward_kl(logits, teacher_rows(scores))

    def hard_where_there_is_no_list(scores: Any) -> Tensor:
        try:
            return distilled(scores)
        except ValueError:
            labels = torch.from_numpy(np.concatenate([s.token_ids for s in scores])).long()
            return torch.nn.functional.cross_entropy(logits, labels)

    def check(loss: Callable[[Any], Tensor]) -> None:
        with pytest.raises(ValueError, match="topk_logprobs"):
            loss(scores)

    check(distilled)
    caught(check, hard_where_there_is_no_list)
