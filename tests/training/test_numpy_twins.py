"""The numpy twins of the losses, which need no torch, agree with them."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np
import pytest
import torch
from torch import Tensor

from scoring_client import divergences
from scoring_client.losses import TeacherRows, forward_kl, generalized_js, reverse_kl
from scoring_client.training.numpy_buckets import Tail
from tests.training.distillation import pair, teacher_of

TWINS: dict[str, tuple[Callable[..., Tensor], Callable[..., np.ndarray]]] = {
    "forward": (forward_kl, divergences.forward_kl),
    "reverse": (reverse_kl, divergences.reverse_kl),
    "js half": (generalized_js, divergences.generalized_js),
    **{
        f"js {alpha}": (
            partial(generalized_js, alpha=alpha),
            partial(divergences.generalized_js, alpha=alpha),
        )
        for alpha in (0.1, 0.9)
    },
}
"""Losses of torch, and what numpy has of them."""


def with_gaps(teacher_N_V: Tensor, k: int, candidates: Tensor | None) -> TeacherRows:
    """A teacher whose list lacks an entry: what stood there is in the tail."""
    teacher = teacher_of(teacher_N_V, k, candidates)
    ids, logprobs, tails = teacher.token_ids, teacher.logprobs, teacher.log_tail_masses
    tails[3] = torch.logaddexp(tails[3], logprobs[3, 2])
    ids[3, 2], logprobs[3, 2] = -1, -0.5
    return teacher


@pytest.mark.parametrize(("loss", "twin"), TWINS.values(), ids=TWINS)
@pytest.mark.parametrize("tail", ["bucket", "renormalize", "drop"])
def test_the_numpy_twin_agrees(
    loss: Callable[..., Tensor], twin: Callable[..., np.ndarray], tail: Tail
) -> None:
    teacher_N_V, logits = pair(rows=20, seed=11)
    candidates = logits.detach().topk(6, dim=1).indices
    candidates[0, 2] = -1
    candidates[1, 3] = candidates[1, 0]
    for asked in (None, candidates):
        teacher = with_gaps(teacher_N_V, 7, asked)
        both = divergences.top_k_buckets(
            logits.detach().log_softmax(1).numpy(),
            teacher.token_ids.numpy(),
            teacher.logprobs.numpy(),
            teacher.log_tail_masses.numpy() if tail == "bucket" else None,
            None if asked is None else asked.numpy(),
            None if asked is None else teacher.candidate_logprobs.numpy(),
            tail=tail,
        )
        ours = loss(logits, teacher, tail=tail, reduction="none").detach().numpy()
        np.testing.assert_allclose(twin(*both), ours, rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize("alpha", [0.1, 0.5])
def test_the_numpy_twin_of_the_floor(alpha: float) -> None:
    teacher_N_V, logits = pair(rows=20, seed=13)
    own = logits.detach().topk(6, dim=1).indices
    own[0, 2] = -1
    own[1, 3] = own[1, 0]
    teacher = with_gaps(teacher_N_V, 7, own)
    both = divergences.union_with_floor(
        logits.detach().log_softmax(1).numpy(),
        teacher.token_ids.numpy(),
        teacher.logprobs.numpy(),
        own.numpy(),
        -20.0,
    )
    ours = generalized_js(logits, teacher, alpha, floor=-20.0, reduction="none").detach().numpy()
    np.testing.assert_allclose(divergences.generalized_js(*both, alpha), ours, rtol=1e-10)
