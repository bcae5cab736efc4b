"""Estimators of the mismatch and importance ratios."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch

from scoring_client import divergences
from scoring_client.replay import importance_ratios, mismatch_kl

NAN = math.nan


def test_the_estimators_estimate_the_divergence() -> None:
    """On two known distributions: k1 and k3 without bias, k2 close to them for small distances."""
    torch.manual_seed(0)
    sampler_V = torch.randn(50, dtype=torch.float64).log_softmax(0)
    trainer_V = (sampler_V + 0.1 * torch.randn(50, dtype=torch.float64)).log_softmax(0)
    truth = (sampler_V.exp() * (sampler_V - trainer_V)).sum().item()
    # The exact expectation: every token as often as the sampler draws it.
    p = sampler_V.exp()
    each = [mismatch_kl(trainer_V[v : v + 1], sampler_V[v : v + 1]) for v in range(50)]
    k1, k2, k3 = (
        sum(p[v].item() * getattr(each[v], k).item() for v in range(50)) for k in ("k1", "k2", "k3")
    )
    assert k1 == pytest.approx(truth, rel=1e-9)
    assert k3 == pytest.approx(truth, rel=1e-9)
    assert k2 == pytest.approx(truth, rel=0.05)
    assert k2 != pytest.approx(truth, rel=1e-6)


def test_means_and_maxima_by_position() -> None:
    sampler = torch.tensor([[-1.0, -2.0, -3.0], [-1.0, -2.0, NAN]], dtype=torch.float64)
    trainer = torch.tensor([[-1.5, -2.0, -2.0], [-0.7, -2.1, math.inf]], dtype=torch.float64)
    mask = torch.tensor([[1, 1, 1], [1, 1, 0]])
    found = mismatch_kl(trainer, sampler, mask)
    ratios = torch.tensor([-0.5, 0.0, 1.0, 0.3, -0.1], dtype=torch.float64)
    k3 = ratios.exp() - 1 - ratios
    assert found.tokens == 5
    torch.testing.assert_close(found.k1, -ratios.mean())
    torch.testing.assert_close(found.k2, ratios.square().mean() / 2)
    torch.testing.assert_close(found.k3, k3.mean())
    torch.testing.assert_close(found.max_k1, torch.tensor([0.5, 0.1, 1.0], dtype=torch.float64))
    torch.testing.assert_close(found.max_k2, torch.tensor([0.125, 0.005, 0.5], dtype=torch.float64))
    torch.testing.assert_close(found.max_k3, torch.stack([k3[0], k3[4], k3[2]]))


def test_equal_numbers_are_exactly_zero_apart() -> None:
    same = torch.randn(4, 7)
    found = mismatch_kl(same, same)
    assert found.k1 == found.k2 == found.k3 == 0
    assert (found.max_k3 == 0).all()


def test_k3_keeps_its_digits_near_one() -> None:
    """r - 1 - log r in float32 by exp would be rounding alone at log r = 1e-4."""
    sampler = torch.full((1000,), -2.0)
    found = mismatch_kl(sampler + 1e-4, sampler)
    true_ratio = float((sampler + 1e-4)[0].double() + 2.0)
    assert found.k3.item() == pytest.approx(true_ratio**2 / 2, rel=1e-2)


def test_ratios_at_each_level() -> None:
    sampler = torch.tensor([[-1.0, -2.0, -3.0], [-1.0, -2.0, -9.0]], dtype=torch.float64)
    trainer = torch.tensor([[-1.5, -2.0, -2.0], [-0.7, -2.1, -1.0]], dtype=torch.float64)
    mask = torch.tensor([[1, 1, 1], [1, 1, 0]])
    token = importance_ratios(trainer, sampler, mask)
    expected = torch.tensor([[-0.5, 0.0, 1.0], [0.3, -0.1, 0.0]], dtype=torch.float64)
    torch.testing.assert_close(token, expected.exp())
    sequence = importance_ratios(trainer, sampler, mask, level="sequence")
    torch.testing.assert_close(sequence, expected.sum(1).exp())
    mean = importance_ratios(trainer, sampler, mask, level="sequence_mean")
    torch.testing.assert_close(mean, (expected.sum(1) / torch.tensor([3.0, 2.0])).exp())
    assert importance_ratios(trainer, sampler, mask, cap=1.2).max() == 1.2


@pytest.mark.parametrize("as_tensor", [False, True])
def test_sequences_laid_end_to_end(as_tensor: bool) -> None:
    """What a loop over them gives, masked tokens and an empty sequence included."""
    lengths = [3, 1, 0, 5, 2]
    given = torch.tensor(lengths) if as_tensor else lengths
    generator = torch.Generator().manual_seed(7)
    sampler = -3 * torch.rand(11, generator=generator, dtype=torch.float64)
    trainer = sampler + 0.2 * torch.randn(11, generator=generator, dtype=torch.float64)
    mask = torch.tensor([1, 1, 0, 0, 1, 1, 0, 1, 1, 1, 1])
    sampler[2] = -math.inf  # masked
    trainer.requires_grad_()
    starts = [0, 3, 4, 4, 9]
    expected: dict[Any, list[float]] = {"sequence": [], "sequence_mean": []}
    worst = [0.0] * 5
    for start, length in zip(starts, lengths, strict=True):
        total, count = 0.0, 0
        for i in range(start, start + length):
            if mask[i]:
                log_ratio = float(trainer.detach()[i]) - float(sampler[i])
                total, count = total + log_ratio, count + 1
                worst[i - start] = max(worst[i - start], abs(log_ratio))
        expected["sequence"].append(math.exp(total))
        expected["sequence_mean"].append(math.exp(total / max(count, 1)))
    for level, ratios in expected.items():
        found = importance_ratios(trainer, sampler, mask, level=level, lengths=given)
        assert found.tolist() == pytest.approx(ratios, rel=1e-12)
        (gradient,) = torch.autograd.grad(found[3], trainer)
        moved = [i for i in range(11) if gradient[i]]
        assert moved == [4, 5, 7, 8], "those of the sequence that count, and no others"
    token = importance_ratios(trainer, sampler, mask)
    assert torch.equal(importance_ratios(trainer, sampler, mask, lengths=given), token)
    found = mismatch_kl(trainer.detach(), sampler, mask, lengths=given)
    assert found.max_k1.tolist() == pytest.approx(worst, rel=1e-12)
    assert found.k3 == mismatch_kl(trainer.detach(), sampler, mask).k3


def test_masked_infinities_send_no_nan_backwards() -> None:
    sampler = torch.tensor([-1.0, -math.inf])
    trainer = torch.tensor([-1.2, -math.inf], requires_grad=True)
    ratio = importance_ratios(trainer, sampler, torch.tensor([True, False]))
    ratio.sum().backward()
    assert ratio[1] == 1
    assert trainer.grad[1] == 0
    assert trainer.grad[0] == pytest.approx(math.exp(-0.2))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_on_one_side_does_not_round_the_other(dtype: torch.dtype) -> None:
    """bfloat16 near -5 has steps of 2^-6: in it a difference of 1e-3 would be none."""
    torch.manual_seed(3)
    trainer = (torch.randn(2, 500) - 5).to(dtype)
    sampler = trainer.float() + 1e-3 * torch.rand(2, 500)
    expected = divergences.mismatch_kl(trainer.double().numpy(), sampler.double().numpy())
    found = mismatch_kl(trainer, sampler)
    assert found.k1.item() == pytest.approx(expected.k1, rel=1e-4)
    assert found.k3.item() == pytest.approx(expected.k3, rel=1e-3)
    ratio = importance_ratios(trainer, sampler)
    torch.testing.assert_close(ratio.double(), (trainer.double() - sampler.double()).exp())
    assert ratio.dtype == torch.float32


@pytest.mark.parametrize("level", ["token", "sequence"])
def test_a_cap_has_no_gradient_even_where_the_ratio_overflows(level: Any) -> None:
    trainer = torch.tensor([[-1.0, -2.0], [-1.1, -2.0]], requires_grad=True)
    sampler = torch.tensor([[-1.0, -200.0], [-1.0, -2.0]])
    capped = importance_ratios(trainer, sampler, level=level, cap=2.0)
    capped.sum().backward()
    assert capped.flatten()[1 if level == "token" else 0] == 2.0
    assert trainer.grad is not None
    assert torch.isfinite(trainer.grad).all()
    assert trainer.grad[0, 1] == 0
    assert trainer.grad[1, 0] == pytest.approx(math.exp(-0.1))


@pytest.mark.parametrize("level", ["token", "sequence", "sequence_mean"])
def test_sampler_and_mask_may_lie_elsewhere(level: Any) -> None:
    """They come from the server and the batch, in the host's memory, to a trainer on a device."""
    trainer = torch.empty(2, 5, device="meta")
    ratios = importance_ratios(trainer, torch.zeros(2, 5), torch.ones(2, 5), level=level, cap=2.0)
    assert ratios.device == trainer.device
    assert ratios.shape == ((2, 5) if level == "token" else (2,))


def test_masked_tokens_have_ratio_1_under_any_cap() -> None:
    trainer, sampler = torch.tensor([-1.0, -1.0, -math.inf]), torch.tensor([-1.0, -2.0, 0.0])
    found = importance_ratios(trainer, sampler, torch.tensor([1, 1, 0]), cap=0.5)
    assert found.tolist() == [0.5, 0.5, 1.0]


def test_what_makes_no_sense_is_refused() -> None:
    a, b = torch.zeros(3), torch.zeros(4)
    with pytest.raises(ValueError, match="differ in shape"):
        mismatch_kl(a, b)
    with pytest.raises(ValueError, match="differ in shape"):
        importance_ratios(a, a, torch.ones(4))
    with pytest.raises(ValueError, match="no token to compare"):
        mismatch_kl(a, a, torch.zeros(3))
    with pytest.raises(ValueError, match="level must be"):
        importance_ratios(a, a, level="row")
    with pytest.raises(ValueError, match="cap must be"):
        importance_ratios(a, a, cap=0.0)
    for lengths in ([2, 2], [4, -1], []):
        with pytest.raises(ValueError, match=f"{len(lengths)} lengths, which add up to"):
            importance_ratios(a, a, level="sequence", lengths=lengths)
        with pytest.raises(ValueError, match="for 3 tokens"):
            mismatch_kl(a, a, lengths=lengths)
    with pytest.raises(ValueError, match=r"of one dimension, \[T\], not \[1, 3\]"):
        importance_ratios(a[None], a[None], lengths=[3])


def test_a_samples_own_arrays_will_do() -> None:
    trainer = torch.tensor([-1.0, -2.0, -3.0], requires_grad=True)
    sampler, mask = np.array([-1.5, -2.0, -2.5], dtype=np.float32), np.array([1, 0, 1])
    tensors = torch.from_numpy(sampler), torch.from_numpy(mask)
    assert torch.equal(mismatch_kl(trainer, sampler, mask).k3, mismatch_kl(trainer, *tensors).k3)
    ratios = importance_ratios(trainer, sampler, mask)
    assert torch.equal(ratios, importance_ratios(trainer, *tensors))
    assert ratios.requires_grad
    with pytest.raises(ValueError, match="sampler must be a tensor or a numpy array, got list"):
        mismatch_kl(trainer, sampler.tolist())  # type: ignore[arg-type]
