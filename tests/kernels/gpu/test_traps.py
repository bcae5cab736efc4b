"""The traps of other sampling and scoring kernels, each with a kernel that fell into it.

A check passes our kernels, passes the small kernel of `wrong_kernels` in its right mode, and
catches it in its wrong one.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import pytest
import torch
import triton
from torch import Tensor

from scoring_service.kernels import reference
from scoring_service.kernels.gpu.tile import TritonTile, words_inputs
from scoring_service.kernels.linear_logprobs import LinearHead, linear_logprobs
from tests.kernels import oracle
from tests.kernels.cases import Setting, promoted
from tests.kernels.gpu import wrong_kernels
from tests.kernels.gpu.device import DEVICE
from tests.kernels.gpu.support import row_parameters, support_mask

FLAT = (np.random.default_rng(0).normal(size=60) * 0.5).astype(np.float32)
ROWS = 16

Inputs = tuple[list[int], list[int], list[int]]
Draw = Callable[[Tensor, Sequence[Setting], Inputs], Tensor]
Supports = Callable[[Tensor, Sequence[Setting]], Tensor]


def caught(check: Callable[[], object]) -> None:
    with pytest.raises(AssertionError):
        check()


def row(values: Sequence[float] | np.ndarray, times: int = 1) -> Tensor:
    return torch.tensor(np.asarray(values, dtype=np.float32), device=DEVICE).repeat(times, 1)


def block(vocab: int) -> int:
    return max(16, triton.next_power_of_2(vocab))


# --- supports


def our_supports(x_T_V: Tensor, settings: Sequence[Setting]) -> Tensor:
    tile = TritonTile(x_T_V)
    return support_mask(tile, tile.support(*row_parameters(settings)))


def supports_of(mode: str) -> Supports:
    def supports(x_T_V: Tensor, settings: Sequence[Setting]) -> Tensor:
        rows, vocab = x_T_V.shape
        keep_T_V = torch.zeros((rows, vocab), dtype=torch.int8, device=DEVICE)
        wrong_kernels.truncate[(rows,)](
            x_T_V, *row_parameters(settings), keep_T_V, vocab, MODE=mode, BLOCK=block(vocab)
        )
        return keep_T_V.bool()

    return supports


def assert_supports(supports: Supports, x_T_V: Tensor, settings: Sequence[Setting]) -> None:
    """Row by row what the float64 oracle keeps."""
    got_T_V = supports(x_T_V, settings).cpu().numpy()
    for x_V, got_V, setting in zip(x_T_V.cpu().numpy(), got_T_V, settings, strict=True):
        np.testing.assert_array_equal(got_V, oracle.support(x_V, **setting.truncation))


def only_right_supports_pass(wrong: str, x_T_V: Tensor, settings: Sequence[Setting]) -> None:
    assert_supports(our_supports, x_T_V, settings)
    assert_supports(supports_of("right"), x_T_V, settings)
    caught(lambda: assert_supports(supports_of(wrong), x_T_V, settings))


def test_top_p_is_measured_on_full_vocabulary_mass() -> None:
    only_right_supports_pass("full mass", row(FLAT), [Setting(top_k=5, top_p=promoted(0.6))])


def test_ties_at_the_nucleus_edge_stay_in_the_wrong_order() -> None:
    x_T_V = row([0, 1, 1, 0, 1, 1, 0, 2])
    only_right_supports_pass("lower ids", x_T_V, [Setting(top_p=promoted(0.6))])


def test_ties_at_the_kth_value_are_cut() -> None:
    only_right_supports_pass("exactly k", row([0, 1, 1, 0, 1, 1, 0, 2]), [Setting(top_k=3)])


def test_min_p_of_a_neighbour_filters_rows_without_it() -> None:
    x_T_V = row([0.0, -60.0, -2.0], times=2)
    only_right_supports_pass("one min-p", x_T_V, [Setting(), Setting(min_p=promoted(0.5))])


def test_the_nucleus_is_decided_in_fp32() -> None:
    """1 - p a hair beside a cumulative mass: fp32 sums cannot tell on which side."""
    rng = np.random.default_rng(7)
    x_V = rng.normal(size=1000).astype(np.float32)
    shares = oracle.cumulative_shares(x_V, 0)[1]
    chosen = rng.choice(shares[100:-100], size=4)
    settings = [Setting(top_p=1 - (share + hair)) for share in chosen for hair in (-1e-9, 1e-9)]
    only_right_supports_pass("fp32", row(x_V, times=len(settings)), settings)


# --- draws


def our_draw(x_T_V: Tensor, settings: Sequence[Setting], inputs: Inputs) -> Tensor:
    tile = TritonTile(x_T_V)
    return tile.draw(tile.support(*row_parameters(settings)), *inputs)


def draw_of(mode: str) -> Draw:
    def draw(x_T_V: Tensor, settings: Sequence[Setting], inputs: Inputs) -> Tensor:
        rows, vocab = x_T_V.shape
        winners_T = torch.empty(rows, dtype=torch.int64, device=DEVICE)
        wrong_kernels.draw[(rows,)](
            x_T_V,
            supports_of("right")(x_T_V, settings).to(torch.int8),
            *words_inputs(*inputs, DEVICE),
            winners_T,
            vocab,
            MODE=mode,
            BLOCK=block(vocab),
        )
        return winners_T

    return draw


def inputs_of(rows: int, first: int = 0) -> Inputs:
    return [2**63 + 11] * rows, [3] * rows, list(range(first, first + rows))


def assert_draws(draw: Draw, x_T_V: Tensor, settings: Sequence[Setting]) -> None:
    """The reference's tokens, row by row."""
    inputs = inputs_of(len(x_T_V))
    got = draw(x_T_V, settings, inputs).tolist()
    for place, setting in enumerate(settings):
        x_1_V = x_T_V[place : place + 1]
        keep_1_V = reference.support(x_1_V, **setting.truncation)
        one = [[column[place]] for column in inputs]
        assert got[place] == reference.draw(x_1_V, keep_1_V, *one).item(), f"row {place}"


def only_right_draws_pass(wrong: str, x_T_V: Tensor, settings: Sequence[Setting]) -> None:
    assert_draws(our_draw, x_T_V, settings)
    assert_draws(draw_of("right"), x_T_V, settings)
    caught(lambda: assert_draws(draw_of(wrong), x_T_V, settings))


def test_ties_collapse_onto_the_lowest_id() -> None:
    only_right_draws_pass("value", row([1.0] * 8 + [0.0] * 8, ROWS), [Setting()] * ROWS)


def test_rejection_falls_back_to_argmax() -> None:
    setting = Setting(top_p=promoted(0.1))
    assert oracle.support(FLAT, **setting.truncation).sum() > 1
    only_right_draws_pass("fallback", row(FLAT, ROWS), [setting] * ROWS)


def test_top_k_is_drawn_from_the_full_vocabulary_and_rejected() -> None:
    only_right_draws_pass("rejection", row(FLAT, ROWS), [Setting(top_k=3)] * ROWS)


def test_one_row_without_a_filter_switches_it_off_for_all() -> None:
    settings = [Setting(top_k=1), Setting()] * (ROWS // 2)
    only_right_draws_pass("all", row(FLAT, ROWS), settings)


@pytest.mark.parametrize("wrong", ["row", "batch"])
def test_the_stream_depends_on_the_batch(wrong: str) -> None:
    """A row alone, and the same row elsewhere in a larger batch, by any filter."""
    settings = [Setting(top_k=k) for k in range(8)]

    def check(draw: Draw) -> None:
        x_T_V, inputs = row(FLAT, 8), inputs_of(8)
        together = draw(x_T_V, settings, inputs).tolist()
        for place in range(8):
            one = tuple([column[place]] for column in inputs)
            assert draw(x_T_V[:1], settings[place : place + 1], one).item() == together[place]  # type: ignore[arg-type]

    check(our_draw)
    check(draw_of("right"))
    caught(lambda: check(draw_of(wrong)))


# --- numbers


def number_of(mode: str, x_T_V: Tensor, targets_T: Tensor, k: int = 1) -> list[float]:
    rows, vocab = x_T_V.shape
    result_T = torch.empty(rows, device=DEVICE)
    wrong_kernels.number[(rows,)](
        x_T_V, targets_T, result_T, vocab, k, MODE=mode, BLOCK=block(vocab)
    )
    return result_T.tolist()


def test_rank_counts_ties_against_the_token() -> None:
    x_T_V, ids_T = row([1, 2, 2, 0, 2], times=5), torch.arange(5, device=DEVICE)
    want = [oracle.rank(x_T_V[0].cpu().numpy(), token) for token in range(5)]
    assert TritonTile(x_T_V, targets_T=ids_T).rank(ids_T, None).tolist() == want
    assert number_of("rank", x_T_V, ids_T) == want
    assert number_of("rank of the worst tie", x_T_V, ids_T) != want


def test_the_tail_is_one_minus_the_sum() -> None:
    """A peaked row, where the difference errs by tenths."""
    x_V = np.random.default_rng(1).normal(size=8192).astype(np.float32)
    x_V[5] += 20
    tile = TritonTile(row(x_V))
    ids_1_K = tile.top_k_ids(1000, 8192)
    want = oracle.log_tail_mass(x_V, ids_1_K[0].cpu().numpy())
    assert abs(math.expm1(float(tile.log_tail_mass(ids_1_K)) - want)) <= 1e-5
    (difference,) = number_of("tail by difference", row(x_V), ids_1_K[:, -1])
    assert not math.isfinite(difference) or abs(math.expm1(difference - want)) > 1e-2


def test_the_realised_tokens_log_prob_is_rebuilt_from_the_list() -> None:
    """A token 30 nats below the best is not in the list; -20 is not its log-prob."""
    x_T_V, ids_T = row([0.0, -1.0, -30.0]), torch.tensor([2], device=DEVICE)
    want = pytest.approx(oracle.logprobs(x_T_V[0].cpu().numpy())[2], abs=1e-5)
    assert TritonTile(x_T_V).logprobs_at(ids_T[:, None]).item() == want
    assert number_of("log-prob", x_T_V, ids_T) == [want]
    assert number_of("floored log-prob", x_T_V, ids_T) != [want]


def test_the_realised_token_does_not_survive_the_mask() -> None:
    """Trainer and sampler disagree at the top-k boundary: without the guard the loss is inf."""
    x_T_V, ids_T = row([1.0, 2.0, 3.0]), torch.tensor([0], device=DEVICE)
    for guard in (True, False):
        guarded_T = torch.tensor([guard], device=DEVICE)
        found = TritonTile(x_T_V).truncate(2, 1.0, 0.0, ids_T, guarded_T)
        assert bool(torch.isfinite(found.processed_T).all()) is guard


def test_candidates_are_counted_as_rows() -> None:
    """[T, C] ids stay two-dimensional, [1, C] serve all rows, and nothing is flattened to T * C."""
    hidden_T_H = torch.randn(3, 8, generator=torch.Generator().manual_seed(0)).to(DEVICE)
    head = LinearHead(torch.eye(8, device=DEVICE).repeat(4, 1).contiguous())
    ids_1_C = torch.tensor([[1, -1, 31, 9]], device=DEVICE)
    targets_T = torch.tensor([1, 2, 3], device=DEVICE)
    shared, whole = (
        linear_logprobs(hidden_T_H, head, targets_T, candidate_ids_T_C=ids, route="fused")
        for ids in (ids_1_C, ids_1_C.repeat(3, 1))
    )
    for found in (shared, whole):
        assert found.candidate_logprobs_T_C is not None
        assert found.candidate_logprobs_T_C.shape == (3, 4)
    torch.testing.assert_close(
        shared.candidate_logprobs_T_C, whole.candidate_logprobs_T_C, rtol=0, atol=0, equal_nan=True
    )
    assert whole.candidate_logprobs_T_C is not None
    assert whole.candidate_logprobs_T_C[0, 0] == whole.logprobs_T[0]
