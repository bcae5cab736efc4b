"""Soft top-K cross-entropy, and the batches that it refuses."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy

from scoring_client import divergences
from scoring_client.losses import soft_cross_entropy
from tests.training.distillation import pair, teacher_of


def test_against_the_full_distribution() -> None:
    """Soft targets over the vocabulary are torch's own cross-entropy with probabilities."""
    teacher_N_V, logits = pair()
    p = teacher_N_V.exp()
    ids = torch.arange(30).expand(6, 30)
    for reduction in ("none", "sum", "mean"):
        ours = soft_cross_entropy(logits, ids, p, reduction=reduction)
        expected = cross_entropy(logits, p, reduction=reduction)
        torch.testing.assert_close(ours, expected)
        got = torch.autograd.grad(ours.sum(), logits)
        torch.testing.assert_close(got, torch.autograd.grad(expected.sum(), logits))


def test_a_few_targets_are_the_full_distribution_with_zeros() -> None:
    teacher_N_V, logits = pair(seed=1)
    teacher = teacher_of(teacher_N_V, 4)
    for renormalize in (True, False):
        weights = teacher.soft_targets(renormalize=renormalize)
        dense = torch.zeros_like(teacher_N_V).scatter(1, teacher.token_ids, weights)
        ours = soft_cross_entropy(logits, teacher.token_ids, weights, reduction="none")
        torch.testing.assert_close(ours, cross_entropy(logits, dense, reduction="none"))
        twin = divergences.soft_cross_entropy(
            logits.detach().log_softmax(1).gather(1, teacher.token_ids).numpy(), weights.numpy()
        )
        np.testing.assert_allclose(twin, ours.detach().numpy(), rtol=1e-12)
    torch.testing.assert_close(teacher.soft_targets().sum(1), torch.ones(6, dtype=torch.float64))


def test_one_target_is_the_hard_loss() -> None:
    _, logits = pair(seed=2)
    labels = torch.randint(30, (6,))
    hard = soft_cross_entropy(logits, labels)
    assert torch.equal(hard, soft_cross_entropy(logits, labels[:, None], torch.ones(6, 1)))
    torch.testing.assert_close(hard, cross_entropy(logits, labels))
    single = logits.detach().float()
    torch.testing.assert_close(soft_cross_entropy(single, labels), cross_entropy(single, labels))


def test_gradcheck_mask_chunks_and_temperature() -> None:
    teacher_N_V, logits = pair(seed=3)
    teacher = teacher_of(teacher_N_V, 4)
    weights, ids = teacher.soft_targets(), teacher.token_ids
    assert torch.autograd.gradcheck(lambda x: soft_cross_entropy(x, ids, weights), logits)
    mask = torch.tensor([1, 1, 0, 0, 1, 0])
    whole = soft_cross_entropy(logits / 0.5, ids, weights, reduction="none")
    ours = soft_cross_entropy(logits, ids, weights, mask=mask, temperature=0.5, chunk_rows=2)
    torch.testing.assert_close(ours, whole[mask.bool()].mean())


@pytest.mark.parametrize("padding", [-1, -100, 30, 2**40])
def test_padding_has_no_weight(padding: int) -> None:
    """Whatever its id: no place of the 30 is looked at."""
    _, logits = pair(seed=4)
    ids = torch.tensor([[3, 5, padding]] * 6)
    weights = torch.tensor([[0.25, 0.75, 0.0]] * 6)
    short = soft_cross_entropy(logits, ids[:, :2], weights[:, :2])
    torch.testing.assert_close(soft_cross_entropy(logits, ids, weights), short)
    banned = logits.detach().clone()
    banned[:, 7] = -math.inf
    ids[:, 2] = 7
    assert torch.isfinite(soft_cross_entropy(banned, ids, weights))


def test_a_batch_of_datums() -> None:
    """One tensor a datum, of different lengths, end to end."""
    teacher_N_V, logits = pair(seed=5)
    teacher = teacher_of(teacher_N_V, 4)
    ids, weights = teacher.token_ids, teacher.soft_targets()
    whole = soft_cross_entropy(logits, ids, weights)
    parts = soft_cross_entropy(logits, ids.split([1, 3, 2]), weights.split([1, 3, 2]))
    assert torch.equal(parts, whole)


def test_what_shipped_elsewhere_is_refused() -> None:
    """[N, K] flattened to N·K, batches of both kinds, weights of another shape: all got through."""
    _, logits = pair()
    hard, soft = torch.zeros(3, dtype=torch.int64), torch.zeros(3, 4, dtype=torch.int64)
    w1, w4 = torch.ones(3), torch.ones(3, 4)
    refused = [
        ([hard, soft], [w1, w4], r"either \[N\] or \[N, K\].*targets 1 \[3, 4\]"),
        ([soft, soft[:, :2]], [w4, w4[:, :2]], "with one K"),
        ([soft, soft], [w4, w1], r"weights 1 have shape \[3\], their targets \[3, 4\]"),
        ([soft, soft], [w4], "2 targets with 1 weights"),
        (torch.zeros(6, 4, dtype=torch.int64), None, r"need weights of the same shape"),
        (torch.zeros(24, dtype=torch.int64), None, "targets have 24 rows, the logits 6"),
        (torch.zeros(6, 4), torch.ones(6, 4), "must be integers"),
        (torch.full((6, 1), 30), torch.ones(6, 1), "outside the vocabulary of 30"),
        (torch.full((6, 1), -1), torch.ones(6, 1), "outside the vocabulary of 30"),
        (torch.zeros(2, 3, 4, dtype=torch.int64), torch.ones(2, 3, 4), "must be integers"),
    ]
    for targets, weights, message in refused:
        with pytest.raises(ValueError, match=message):
            soft_cross_entropy(logits, targets, weights)
