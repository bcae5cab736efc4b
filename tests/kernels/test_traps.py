"""The mathematical traps of docs/traps.md. Each wrong variant shipped somewhere; here it must be
caught by the very check that the reference passes."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from scoring_service.kernels import reference
from tests.kernels import cases, oracle
from tests.kernels.cases import Setting, promoted
from tests.kernels.checks import (
    assert_alone_as_in_batch,
    assert_draws,
    assert_ranks,
    assert_supports,
    assert_tail_masses,
)

FLAT = (np.random.default_rng(0).normal(size=60) * 0.5).astype(np.float32)


def caught(check: Callable[[], object]) -> None:
    with pytest.raises(AssertionError):
        check()


def candidates(x_T_V: Tensor, positions: list[int], tries: int) -> Tensor:
    """Independent draws from the full vocabulary, [T, tries]: where rejection sampling starts."""
    generator = torch.Generator().manual_seed(positions[0])
    return torch.multinomial(
        torch.softmax(x_T_V, dim=1), tries, replacement=True, generator=generator
    )


def first_accepted(accepted: Tensor, tokens: Tensor, fallback: Tensor) -> Tensor:
    chosen = tokens.gather(1, accepted.to(torch.uint8).argmax(dim=1, keepdim=True))[:, 0]
    return torch.where(accepted.any(dim=1), chosen, fallback)


# --- sampling


def draw_then_find_value(x: Tensor, keep: Tensor, *inputs: list[int]) -> Tensor:
    """Resolves the winner by its logit value: equal candidates collapse onto the lowest id."""
    value = x.gather(1, reference.draw(x, keep, *inputs)[:, None])
    return (x == value).to(torch.uint8).argmax(dim=1)


def draw_or_argmax(x: Tensor, keep: Tensor, *inputs: list[int]) -> Tensor:
    """Rejection from the full distribution, greedy after 8 tries."""
    tokens = candidates(x, inputs[2], 8)
    return first_accepted(keep.gather(1, tokens), tokens, reference.greedy(x))


def draw_full_vocabulary_once(x: Tensor, keep: Tensor, *inputs: list[int]) -> Tensor:
    """Top-k drawn from the full vocabulary, accepted only if it lands in the top-k set."""
    tokens = candidates(x, inputs[2], 2)
    return first_accepted(keep.gather(1, tokens), tokens, tokens[:, -1])


def test_ties_collapse_onto_the_lowest_id() -> None:
    x_V = np.repeat(np.array([1.0, 0.0], dtype=np.float32), 8)
    assert_draws(reference.draw, x_V, Setting())
    caught(lambda: assert_draws(draw_then_find_value, x_V, Setting()))


def test_rejection_falls_back_to_argmax() -> None:
    setting = Setting(top_p=promoted(0.1))
    assert oracle.support(FLAT, **setting.truncation).sum() > 1
    assert_draws(reference.draw, FLAT, setting)
    caught(lambda: assert_draws(draw_or_argmax, FLAT, setting))


def test_top_k_is_drawn_from_the_full_vocabulary_and_rejected() -> None:
    assert_draws(reference.draw, FLAT, Setting(top_k=3))
    caught(lambda: assert_draws(draw_full_vocabulary_once, FLAT, Setting(top_k=3)))


def draw_by_row_number(x: Tensor, keep: Tensor, *inputs: list[int]) -> Tensor:
    """Another stream when the batch is another: the row's number goes into the counter."""
    seeds, _, positions = inputs
    return reference.draw(x, keep, seeds, list(range(len(seeds))), positions)


def draw_one_stream(x: Tensor, keep: Tensor, *inputs: list[int]) -> Tensor:
    """A global generator, as static `generate` has: the order of the batch decides."""
    generator = torch.Generator().manual_seed(inputs[0][0])
    probabilities = torch.softmax(x.masked_fill(~keep, -math.inf), dim=1)
    return torch.multinomial(probabilities, 1, generator=generator)[:, 0]


@pytest.mark.parametrize("wrong", [draw_by_row_number, draw_one_stream])
def test_the_random_stream_depends_on_the_batch(wrong: Callable[..., Tensor]) -> None:
    assert_alone_as_in_batch(reference.draw)
    caught(lambda: assert_alone_as_in_batch(wrong))


# --- truncation


def support_on_full_mass(
    x: Tensor, top_k: int = 0, top_p: float = 1.0, min_p: float = 0.0
) -> Tensor:
    """top-p measured against the mass of the whole vocabulary."""
    of_all = reference.support(x, top_p=top_p)
    return reference.support(x, top_k=top_k, min_p=min_p) & of_all


def support_with_lower_ids(
    x: Tensor, top_k: int = 0, top_p: float = 1.0, min_p: float = 0.0
) -> Tensor:
    """Ties at the nucleus's edge resolved the other way, as an unstable sort may."""
    return reference.support(x.flip(1), top_k, top_p, min_p).flip(1)


def support_of_exactly_k(
    x: Tensor, top_k: int = 0, top_p: float = 1.0, min_p: float = 0.0
) -> Tensor:
    """Exactly k tokens, ties at the k-th value cut."""
    keep = reference.support(x, 0, top_p, min_p)
    if 0 < top_k < x.shape[1]:
        keep &= torch.zeros_like(keep).scatter(1, reference.top_k_ids(x, top_k), True)
    return keep


def test_top_p_is_measured_on_full_vocabulary_mass() -> None:
    setting = Setting(top_k=5, top_p=promoted(0.6))
    assert_supports(reference.support, FLAT[None], setting)
    caught(lambda: assert_supports(support_on_full_mass, FLAT[None], setting))


def test_ties_at_the_edges_are_cut_otherwise() -> None:
    x_T_V = np.array([[0, 1, 1, 0, 1, 1, 0, 2]], dtype=np.float32)
    nucleus, top_k = Setting(top_p=promoted(0.6)), Setting(top_k=3)
    assert_supports(reference.support, x_T_V, nucleus)
    assert_supports(reference.support, x_T_V, top_k)
    caught(lambda: assert_supports(support_with_lower_ids, x_T_V, nucleus))
    caught(lambda: assert_supports(support_of_exactly_k, x_T_V, top_k))


def supports_row_by_row(x: Tensor, min_ps: list[float]) -> Tensor:
    rows = [reference.support(x[i : i + 1], min_p=min_p) for i, min_p in enumerate(min_ps)]
    return torch.cat(rows)


def supports_with_one_mode(x: Tensor, min_ps: list[float]) -> Tensor:
    """One row with min-p switches it on for all, where 0 becomes 1e-20 to have a logarithm."""
    clamped = [max(min_p, 1e-20) if max(min_ps) > 0 else 0.0 for min_p in min_ps]
    return supports_row_by_row(x, clamped)


def test_min_p_of_a_neighbour_filters_rows_without_it() -> None:
    """A token 60 nats below the best stays where min_p is 0, whoever else is in the batch."""
    row = np.array([0.0, -60.0, -2.0], dtype=np.float32)
    min_ps = [0.0, promoted(0.5)]

    def check(supports: Callable[[Tensor, list[float]], Tensor]) -> None:
        got = supports(torch.from_numpy(np.stack([row, row])), min_ps).numpy()
        for keep_V, min_p in zip(got, min_ps, strict=True):
            np.testing.assert_array_equal(keep_V, oracle.support(row, min_p=min_p))

    check(supports_row_by_row)
    caught(lambda: check(supports_with_one_mode))


# --- statistics


def tail_by_difference(x: Tensor, log_z: Tensor, ids: Tensor) -> Tensor:
    """log(1 - sum of the listed), in fp32."""
    listed = (x.gather(1, ids) - log_z.float()[:, None]).exp().sum(dim=1)
    return torch.log1p(-listed.clamp(max=1.0))


def test_tail_is_one_minus_the_sum() -> None:
    """A peaked row at K = 1,024, where the difference errs by tenths."""
    x_T_V = np.random.default_rng(1).normal(size=(1, 49152)).astype(np.float32)
    x_T_V[0, 5] += 20
    assert_tail_masses(reference.log_tail_mass, x_T_V, 1024)
    caught(lambda: assert_tail_masses(tail_by_difference, x_T_V, 1024))


def rank_of_the_worst_tie(x: Tensor, ids: Tensor) -> Tensor:
    """Counts >=, so that ties all get the last of their ranks."""
    return (x >= x.gather(1, ids[:, None])).sum(dim=1)


def test_rank_counts_ties_against_the_token() -> None:
    x_V = np.array([1, 2, 2, 0, 2], dtype=np.float32)
    assert_ranks(reference.rank, x_V, range(5))
    caught(lambda: assert_ranks(rank_of_the_worst_tie, x_V, range(5)))


def test_the_realised_token_does_not_survive_the_mask() -> None:
    """Trainer and sampler disagree at the top-k boundary: without the guard the loss is inf."""
    x = torch.tensor([[1.0, 2.0, 3.0]])
    keep, realised = reference.support(x, top_k=2), torch.tensor([0])
    log_z = reference.logsumexp(x)

    def value(keep_T_V: Tensor) -> float:
        log_kept = reference.log_kept_mass(x, log_z, keep_T_V)
        return reference.processed_logprobs_at(x, log_z, keep_T_V, log_kept, realised).item()

    def check(keep_T_V: Tensor) -> None:
        assert math.isfinite(value(keep_T_V))

    check(keep.scatter(1, realised[:, None], True))
    caught(lambda: check(keep))
    assert cases.promoted(value(keep.scatter(1, realised[:, None], True))) == pytest.approx(
        float(oracle.logprobs(x.numpy()[0])[0]), abs=1e-6
    )
