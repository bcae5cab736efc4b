"""The generalised Jensen-Shannon divergence: its range, its symmetry, its limits."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from scoring_client import divergences
from scoring_client.losses import TeacherRows, forward_kl, generalized_js, reverse_kl
from tests.training.distillation import exact_js, pair, teacher_of


def entropy_of(alpha: float) -> float:
    return -alpha * math.log(alpha) - (1 - alpha) * math.log1p(-alpha)


@pytest.mark.parametrize("alpha", [0.05, 0.3, 0.5, 0.8])
def test_range_and_symmetry_of_js(alpha: float) -> None:
    teacher_N_V, logits = pair(rows=40, seed=4)
    values = generalized_js(logits, teacher_of(teacher_N_V, 30), alpha, reduction="none")
    assert (values > 0).all()
    assert (values < entropy_of(alpha)).all()
    student = teacher_of(logits.detach().log_softmax(1), 30)
    mirrored = generalized_js(teacher_N_V, student, 1 - alpha, reduction="none")
    torch.testing.assert_close(mirrored, values)
    # Disjoint supports reach the upper end, H(alpha).
    apart = torch.tensor([[0.0, 0.0, -2000.0, -2000.0]], dtype=torch.float64)
    listed = teacher_of(apart.log_softmax(1).flip(1), 4)
    assert generalized_js(apart, listed, alpha).item() == pytest.approx(entropy_of(alpha))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_limits_of_js(dtype: torch.dtype) -> None:
    """alpha to 0: alpha times forward KL. alpha to 1: (1 - alpha) times reverse KL."""
    teacher_N_V, logits = pair(seed=6)
    # The distance from the limit is of the order of alpha times chi-squared: near each other.
    teacher = teacher_of((teacher_N_V / 4).log_softmax(1), 10)
    teacher = replace(teacher, logprobs=teacher.logprobs.to(dtype))
    logits = (logits.detach() / 4).to(dtype).requires_grad_(True)
    small, rtol = (2.0**-10, 2e-2) if dtype == torch.float32 else (2.0**-20, 2e-5)
    for alpha, limit in ((small, forward_kl), (1 - small, reverse_kl)):
        expected = limit(logits, teacher)
        near = generalized_js(logits, teacher, alpha)
        torch.testing.assert_close(near / small, expected, rtol=rtol, atol=0)
        at_end = generalized_js(logits, teacher, round(alpha), normalize=True)
        assert torch.equal(at_end, expected)
    half = generalized_js(logits, teacher, 0.5)
    torch.testing.assert_close(generalized_js(logits, teacher, 0.5, normalize=True), 4 * half)
    for alpha in (0.0, 1.0, -0.1, 1.1):
        with pytest.raises(ValueError, match="alpha must be in"):
            generalized_js(logits, teacher, alpha)
    with pytest.raises(ValueError, match=r"alpha must be in \[0, 1\]"):
        generalized_js(logits, teacher, 1.5, normalize=True)


@pytest.mark.parametrize("impossible", [False, True])
@pytest.mark.parametrize(("dtype", "within"), [(torch.float32, 2e-5), (torch.float64, 1e-10)])
@pytest.mark.parametrize("alpha", [1e-30, 1e-12, 1e-8, 1e-6, 1e-3, 0.3, 1 - 1e-6, 1 - 1e-8])
def test_js_near_its_limits(
    alpha: float, dtype: torch.dtype, within: float, impossible: bool
) -> None:
    """In the logits' own type, also where the student holds impossible what its teacher may say."""
    generator = torch.Generator().manual_seed(16)
    teacher_N_V = (4 * torch.randn(6, 30, generator=generator, dtype=torch.float64)).log_softmax(1)
    # Gaps of all sizes, from one bit to more than float32's exp can take.
    moved_N_V = torch.randn(6, 30, generator=generator, dtype=torch.float64)
    logits = (teacher_N_V + moved_N_V * torch.logspace(-7, 1.7, 30)).to(dtype)
    if impossible:
        logits[:, 20] = -math.inf
    logits.requires_grad_(True)
    teacher = TeacherRows(token_ids=torch.arange(30).expand(6, 30), logprobs=teacher_N_V.to(dtype))
    ours = generalized_js(logits, teacher, alpha, normalize=True, tail="drop", reduction="none")
    (gradient,) = torch.autograd.grad(ours.sum(), logits)
    log_q_N_V = logits.detach().double().log_softmax(1)
    for row in range(6):
        value, by_logits = exact_js(teacher_N_V[row].tolist(), log_q_N_V[row].tolist(), alpha)
        assert ours[row].item() == pytest.approx(value, rel=within, abs=within)
        assert gradient[row].tolist() == pytest.approx(by_logits, rel=within, abs=within)
        twin = divergences.generalized_js(
            teacher_N_V[row].numpy(), log_q_N_V[row].numpy(), alpha, normalize=True
        )
        assert twin == pytest.approx(value, rel=1e-12, abs=1e-12)
