"""How far a trainer's log-probs lie from its sampler's, and the ratios that correct for it.

log r = trainer - sampler at tokens that the sampler drew. Needs torch;
``divergences.mismatch_kl`` is the comparison in numpy, without the maxima by position.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from scoring_client.training.given import Given, as_tensor

Lengths = Sequence[int] | Tensor
"""How many tokens each sequence has."""

RatioLevel = Literal["token", "sequence", "sequence_mean"]


@dataclass(frozen=True, slots=True, eq=False)
class MismatchKL:
    """Estimates of KL(sampler || trainer), nats a token, from the sampler's own draws.

    The estimators are those of Schulman, "Approximating KL divergence" (2020): k1 = -log r
    (unbiased, may be negative), k2 = (log r)² / 2 (biased, low variance), k3 = r - 1 - log r
    (unbiased, never negative; what trainers log as "mismatch KL").
    """

    k1: Tensor
    """Mean of -log r, 0-d."""
    k2: Tensor
    """Mean of (log r)² / 2, 0-d."""
    k3: Tensor
    """Mean of r - 1 - log r, 0-d."""
    max_k1: Tensor
    """Largest |log r| at each position: over all dimensions but the last, [T], or over sequences
    laid end to end whose ``lengths`` were given, [longest]; 0 where the mask leaves nothing."""
    max_k2: Tensor
    """Largest (log r)² / 2 at each position."""
    max_k3: Tensor
    """Largest r - 1 - log r at each position."""
    tokens: Tensor
    """How many tokens were compared, 0-d."""


def mismatch_kl(
    trainer: Tensor,
    sampler: Given,
    mask: Given | None = None,
    *,
    lengths: Lengths | None = None,
) -> MismatchKL:
    """Compare the trainer's log-probs of drawn tokens with the sampler's.

    Computed in the wider type of the two, float32 at least.

    Args:
        trainer: [..., T], such as ``processed_logprobs`` of the trainer's logits.
        sampler: [..., T], the sampler's ``processed_logprobs``, a tensor on any device or an array,
            as the mask.
        mask: bool or 0 and 1, [..., T]; what is masked may hold anything.
        lengths: Tokens of each of the sequences laid end to end in [T]: the maxima are then over
            sequences, at each position within them, [longest].

    Raises:
        ValueError: the shapes differ, the lengths do not add up to T, or there is no token to
            compare.
    """
    log_ratio, wanted = _log_ratio(trainer, sampler, mask)
    count = wanted.sum()
    if count == 0:
        raise ValueError("there is no token to compare: the mask is empty")
    k1, k2 = -log_ratio, log_ratio.square() / 2
    # r - 1 by expm1: near r = 1, where it matters, r - 1 - log r would be rounding alone.
    k3 = torch.expm1(log_ratio) - log_ratio
    columns = log_ratio.shape[-1] if log_ratio.ndim else 1
    counts = None if lengths is None else _checked(lengths, log_ratio)

    def worst(values: Tensor) -> Tensor:
        if counts is not None:
            # None of them is below 0, so that rows of 0 stand for what a shorter sequence lacks.
            return pad_sequence(list(values.split(counts)), batch_first=True).amax(dim=0)
        return values.reshape(-1, columns).amax(dim=0)

    return MismatchKL(
        k1=k1.sum() / count,
        k2=k2.sum() / count,
        k3=k3.sum() / count,
        max_k1=worst(k1.abs()),
        max_k2=worst(k2),
        max_k3=worst(k3),
        tokens=count,
    )


def importance_ratios(
    trainer: Tensor,
    sampler: Given,
    mask: Given | None = None,
    *,
    level: RatioLevel = "token",
    cap: float | None = None,
    lengths: Lengths | None = None,
) -> Tensor:
    """Return r = p_trainer / p_sampler of drawn tokens; differentiable in the trainer.

    In the wider type of the two, float32 at least.

    Args:
        trainer: [..., T].
        sampler: [..., T], a tensor on any device or an array, as the mask.
        mask: bool or 0 and 1, [..., T]; masked tokens have ratio 1 and count for nothing.
        level: ``token``: [..., T]. ``sequence``: the product over T, [...]. ``sequence_mean``: its
            geometric mean over the tokens that count (GSPO), [...].
        cap: Largest ratio (truncated importance sampling); where it holds there is no gradient.
        lengths: Tokens of each of the B sequences laid end to end in [T], as ``row_settings`` takes
            them: the ratios of sequences are then [B]. Without it, [T] is one sequence.

    Raises:
        ValueError: the shapes differ, the level is unknown, cap <= 0, or the lengths do not add up
            to T.
    """
    if cap is not None and not cap > 0:
        raise ValueError(f"cap must be above 0, got {cap}")
    log_ratio, wanted = _log_ratio(trainer, sampler, mask)
    counts = None if lengths is None else _checked(lengths, log_ratio)
    if level == "sequence":
        log_ratio = _sums(log_ratio, counts)
    elif level == "sequence_mean":
        log_ratio = _sums(log_ratio, counts) / _sums(wanted, counts).clamp(min=1)
    elif level != "token":
        raise ValueError(f'level must be "token", "sequence" or "sequence_mean", got {level!r}')
    if cap is None:
        return log_ratio.exp()
    # The logarithm is capped, not the ratio: 0 times the gradient of a ratio that overflows is NaN.
    capped = log_ratio > math.log(cap)
    if level == "token":
        capped &= wanted
    return log_ratio.masked_fill(capped, 0.0).exp().masked_fill(capped, cap)


def _checked(lengths: Lengths, flat: Tensor) -> list[int]:
    """Lengths of sequences that are laid end to end."""
    counts = [int(length) for length in lengths]
    if flat.ndim != 1:
        raise ValueError(f"lengths divide a tensor of one dimension, [T], not {list(flat.shape)}")
    if min(counts, default=0) < 0 or sum(counts) != len(flat):
        raise ValueError(
            f"{len(counts)} lengths, which add up to {sum(counts)}, for {len(flat)} tokens"
        )
    return counts


def _sums(values: Tensor, counts: list[int] | None) -> Tensor:
    """Over the last dimension, or over each of the sequences laid end to end."""
    if counts is None:
        return values.sum(dim=-1)
    # A sum of each, rather than differences of running ones: those would round by the whole batch.
    return torch.stack([part.sum() for part in values.split(counts)]) if counts else values


def _log_ratio(trainer: Tensor, sampler: Given, mask: Given | None) -> tuple[Tensor, Tensor]:
    """The log-ratio, 0 where masked, and the mask."""
    trainer, sampler = as_tensor("trainer", trainer), as_tensor("sampler", sampler)
    mask = None if mask is None else as_tensor("mask", mask)
    if trainer.shape != sampler.shape or (mask is not None and mask.shape != trainer.shape):
        shapes = [list(t.shape) for t in (trainer, sampler, mask) if t is not None]
        raise ValueError(f"trainer, sampler and mask differ in shape: {shapes}")
    if mask is None:
        wanted = torch.ones_like(trainer, dtype=torch.bool)
    else:
        wanted = mask.to(trainer.device, torch.bool)
    # The operands are masked, not the difference: -inf - -inf there would send NaN backwards.
    # Half precision would round the sampler by more than the difference that is looked for.
    dtype = torch.promote_types(torch.promote_types(trainer.dtype, sampler.dtype), torch.float32)
    kept_trainer = trainer.to(dtype).masked_fill(~wanted, 0.0)
    kept_sampler = sampler.to(trainer.device, dtype).masked_fill(~wanted, 0.0)
    return kept_trainer - kept_sampler, wanted
