"""Scaling, log-sum-exp, log-probs and entropy against float64."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from scoring_service.kernels import reference
from tests.kernels import cases, oracle
from tests.kernels.checks import half_ulp

VOCABS = (1, 2, 7, 333, 4097, 49152)


def rows(vocab: int, seed: int = 0) -> oracle.F32:
    """One row of each kind, and one with a few banned tokens."""
    rng = np.random.default_rng(seed)
    rows = [kind(rng, vocab) for kind in cases.KINDS]
    rows.append(cases.continuous(rng, vocab))
    rows[-1][1::5] = -math.inf
    return np.stack(rows)


@pytest.mark.parametrize("temperature", [1.0, 0.3, 0.7, 1.1, 2.0, 1e-4, 3.14159])
def test_scaling_is_one_rounded_fp32_division(temperature: float) -> None:
    """Bit for bit: multiplying by the reciprocal would move ties and edges."""
    logits = rows(4097)
    temperature = cases.promoted(temperature)
    got = reference.scale(torch.from_numpy(logits), temperature)
    np.testing.assert_array_equal(got.numpy(), oracle.scaled(logits, temperature))


def test_scaling_promotes_bfloat16_before_it_divides() -> None:
    logits = torch.from_numpy(rows(333)).bfloat16()
    got = reference.scale(logits, cases.promoted(0.7))
    want = oracle.scaled(logits.float().numpy(), cases.promoted(0.7))
    assert got.dtype == torch.float32
    np.testing.assert_array_equal(got.numpy(), want)


@pytest.mark.parametrize("vocab", VOCABS)
def test_logsumexp(vocab: int) -> None:
    """Within 2e-7: the error of fp32 exponentials, none of the sum."""
    x_T_V = rows(vocab)
    got = reference.logsumexp(torch.from_numpy(x_T_V)).numpy()
    want = [oracle.logsumexp(x_V) for x_V in x_T_V]
    np.testing.assert_allclose(got, want, rtol=0, atol=2e-7)


@pytest.mark.parametrize("vocab", VOCABS)
def test_log_softmax_of_every_token(vocab: int) -> None:
    """Every log-prob within the rounding of its own fp32 value and 2e-7 of the log-sum-exp."""
    x_T_V = rows(vocab)
    x = torch.from_numpy(x_T_V)
    ids_T_V = torch.arange(vocab).expand(len(x_T_V), -1)
    got = reference.logprobs_at(x, reference.logsumexp(x), ids_T_V).double().numpy()
    want = np.stack([oracle.logprobs(x_V) for x_V in x_T_V])
    np.testing.assert_array_equal(np.isneginf(got), np.isneginf(want))
    finite = np.isfinite(want)
    error = np.abs(got[finite] - want[finite])
    assert np.all(error <= half_ulp(want[finite]) + 2e-7), error.max()
    assert got.max() <= 0


def test_a_negative_id_is_not_asked_and_answers_nan() -> None:
    """Candidates of -1 are NaN, as the contract says, the others of the row as if alone."""
    x = torch.from_numpy(rows(333))
    ids = torch.tensor([[5, -1, 332, -7]]).expand(len(x), -1)
    got = reference.logprobs_at(x, reference.logsumexp(x), ids)
    assert torch.isnan(got).tolist() == [[False, True, False, True]] * len(x)
    alone = reference.logprobs_at(x, reference.logsumexp(x), ids[:, [0, 2]])
    assert torch.equal(got[:, [0, 2]], alone)


@pytest.mark.parametrize("offset", [0.0, -128.0, 32.0, 1024.0])
@pytest.mark.parametrize("vocab", VOCABS)
def test_entropy(vocab: int, offset: float) -> None:
    """Within 1e-6 nats, wherever the model puts its logits (GPT-2's lie near -100).

    The entropy does not change with an offset; rows on a grid of 1/64 make adding it exact.
    """
    x_T_V = (np.round(rows(vocab) * 64) / 64).astype(np.float32)
    shifted = torch.from_numpy(x_T_V + np.float32(offset))
    got = reference.entropy(shifted, reference.logsumexp(shifted)).double().numpy()
    want = [oracle.entropy(x_V) for x_V in x_T_V]
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-6)


def test_entropy_of_known_rows() -> None:
    """Equal values: log of their number; banned tokens add nothing; one token: 0."""
    x = torch.zeros(3, 512)
    x[1, 256:] = -math.inf
    x[2, 1:] = -math.inf
    got = reference.entropy(x, reference.logsumexp(x)).tolist()
    assert got == pytest.approx([math.log(512), math.log(256), 0.0], abs=1e-6)


def test_a_row_of_nan_does_not_pass_for_certain() -> None:
    """NaN logits are a fault of the model: an entropy of 0 would hide it (house rule 4)."""
    x = torch.zeros(1, 8)
    x[0, 3] = math.nan
    log_z = reference.logsumexp(x)
    assert torch.isnan(log_z).all()
    assert torch.isnan(reference.entropy(x, log_z)).all()
