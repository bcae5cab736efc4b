"""How exact the union of a list and candidates is, whose tail is a difference."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from scoring_client.losses import TeacherRows, forward_kl, generalized_js, reverse_kl
from scoring_client.training.buckets import buckets
from scoring_client.training.numpy_buckets import TAIL_RESOLUTION
from scoring_service.kernels import reference
from tests.training.distillation import pair, teacher_of

PROMISED = 1e-5
"""Of the tail: what a server's tail may be wrong by (tests/kernels/test_tail_mass.py)."""
SEEN = 2e-6
"""Of the tail, in float32."""


def logits_of(scale: float, dtype: torch.dtype, rows: int = 100, vocab: int = 500) -> Tensor:
    generator = torch.Generator().manual_seed(int(scale))
    return scale * torch.randn(rows, vocab, dtype=dtype, generator=generator)


def served(logits_N_V: Tensor, k: int, candidate_ids: Tensor) -> TeacherRows:
    """What the server answers for its logits: of the list the bits of a log-softmax in their type,
    which the losses have as well, and its own tail."""
    logits_N_V = logits_N_V - logits_N_V.amax(dim=1, keepdim=True)
    log_z_N = logits_N_V.logsumexp(1)
    top = logits_N_V.topk(k, dim=1)
    return TeacherRows(
        token_ids=top.indices,
        logprobs=top.values - log_z_N[:, None],
        log_tail_masses=reference.log_tail_mass(logits_N_V, log_z_N, top.indices),
        candidate_ids=candidate_ids,
        candidate_logprobs=logits_N_V.gather(1, candidate_ids) - log_z_N[:, None],
    )


def exact_tails(logits_N_V: Tensor, ids_N_K: Tensor) -> Tensor:
    return logits_N_V.double().log_softmax(1).scatter(1, ids_N_K, -math.inf).logsumexp(1)


def share_left(logits_N_V: Tensor, teacher: TeacherRows) -> Tensor:
    """What candidates leave of the tail; they hold the list."""
    assert teacher.candidate_ids is not None
    left_N = exact_tails(logits_N_V, teacher.candidate_ids)
    return (left_N - exact_tails(logits_N_V, teacher.token_ids)).exp()


@pytest.mark.parametrize("off", [0.0, PROMISED, -PROMISED], ids=["served", "more", "less"])
@pytest.mark.parametrize("scale", [1.0, 3.0, 6.0])
@pytest.mark.parametrize("loss", [forward_kl, reverse_kl])
def test_kl_of_equal_distributions(loss: Callable[..., Tensor], scale: float, off: float) -> None:
    """On either side of 0 by the error of the tail's mass, and no more."""
    logits = logits_of(scale, torch.float32)
    teacher = served(logits, 20, logits.topk(40, dim=1).indices)
    tails = teacher.log_tail_masses
    values = loss(logits, replace(teacher, log_tail_masses=tails + off), reduction="none")
    bound = (SEEN + abs(off)) * tails.exp()
    assert (values.abs() <= bound).all()
    if off:
        # The error is there: the bound is not a wide one.
        assert (values.abs() >= bound / 2).any()


@pytest.mark.parametrize("off", [0.0, PROMISED, -PROMISED], ids=["served", "more", "less"])
@pytest.mark.parametrize("alpha", [0.1, 0.5, 0.9])
def test_js_of_equal_distributions(alpha: float, off: float) -> None:
    """It has the square of that error over what is left, and its own rounding."""
    for scale, count in ((1.0, 20), (3.0, 20), (6.0, 20), (6.0, 80)):
        logits = logits_of(scale, torch.float32)
        teacher = served(logits, 20, logits.topk(20 + count, dim=1).indices)
        tails = teacher.log_tail_masses
        values = generalized_js(
            logits, replace(teacher, log_tail_masses=tails + off), alpha, reduction="none"
        )
        # The second order of both divergences from the mean, p δ² α (1 - α) / 2.
        bound = (
            alpha
            * (1 - alpha)
            / 2
            * (SEEN + abs(off)) ** 2
            * tails.exp()
            / share_left(logits, teacher)
        )
        assert (values >= -1e-13).all()
        assert (values <= 1.2 * bound + 1e-13).all()


@pytest.mark.parametrize("count", [4, 16, 64, 256])
def test_what_candidates_leave_of_the_tail(count: int) -> None:
    """Right to the error of the whole tail, so the less is left the less exactly it is known."""
    logits = logits_of(6.0, torch.float32, vocab=2048)
    candidates = logits.topk(20 + count, dim=1).indices
    teacher = served(logits, 20, candidates)
    named = {name: getattr(teacher, name) for name in TeacherRows.__slots__ if "real" not in name}
    left_N = buckets(logits, **named, tail="bucket").teacher[:, -1].double()
    truth_N = exact_tails(logits, candidates)
    share_N = share_left(logits, teacher)
    assert (share_N > 1.1 * TAIL_RESOLUTION).all()
    assert (torch.expm1(left_N - truth_N).abs() <= SEEN / share_N).all()


def test_candidates_that_exhaust_the_tail_are_left_out() -> None:
    """A difference below 1e-4 of the tail is rounding: coarser, and as exact as the tail."""
    teacher_N_V, logits = pair(rows=3, vocab=12, seed=8)
    everything = torch.arange(12).expand(3, 12)
    teacher = teacher_of(teacher_N_V, 4, everything)
    # As a server answers: float32, the tail right to 1e-5.
    noisy = replace(teacher, log_tail_masses=(teacher.log_tail_masses - 1e-5).float())
    expected = reverse_kl(logits, teacher_of(teacher_N_V, 4))
    assert torch.isfinite(reverse_kl(logits, noisy))
    torch.testing.assert_close(reverse_kl(logits, noisy), expected, rtol=1e-4, atol=0)
