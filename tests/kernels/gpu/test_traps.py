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
from scoring_service.types import Processing
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


def square(vocab: int) -> int:
    """The block of a kernel that compares every token of a row with every other."""
    size = block(vocab)
    assert size <= wrong_kernels.MAX_SQUARE, f"{size} x {size} numbers in a program's registers"
    return size


# --- supports


def our_supports(x_T_V: Tensor, settings: Sequence[Setting]) -> Tensor:
    tile = TritonTile(x_T_V)
    return support_mask(tile, tile.support(*row_parameters(settings)))


def supports_of(mode: str) -> Supports:
    def supports(x_T_V: Tensor, settings: Sequence[Setting]) -> Tensor:
        rows, vocab = x_T_V.shape
        keep_T_V = torch.zeros((rows, vocab), dtype=torch.int8, device=DEVICE)
        wrong_kernels.truncate[(rows,)](
            x_T_V, *row_parameters(settings), keep_T_V, vocab, MODE=mode, BLOCK=square(vocab)
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
    x_V = rng.normal(size=60).astype(np.float32)
    shares = oracle.cumulative_shares(x_V, 0)[1]
    chosen = rng.choice(shares[10:-10], size=4)
    settings = [Setting(top_p=1 - (share + hair)) for share in chosen for hair in (-1e-9, 1e-9)]
    only_right_supports_pass("fp32", row(x_V, times=len(settings)), settings)


# --- draws


def our_draw(x_T_V: Tensor, settings: Sequence[Setting], inputs: Inputs) -> Tensor:
    tile = TritonTile(x_T_V)
    return tile.draw_from(tile.support(*row_parameters(settings)), *inputs)


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


def test_one_seed_correlates_prompts() -> None:
    """Prompts of their own seeds, at one position and sample index: as the reference draws each."""
    rows = 32
    x_T_V, seeds = row(FLAT, rows), [7919 * (place + 1) for place in range(rows)]
    keep_T_V = torch.ones_like(x_T_V, dtype=torch.bool)
    want = reference.draw(x_T_V, keep_T_V, seeds, [0] * rows, [5] * rows).tolist()
    assert len(set(want)) > rows // 4

    def check(draw: Draw) -> None:
        assert draw(x_T_V, [Setting()] * rows, (seeds, [0] * rows, [5] * rows)).tolist() == want

    check(our_draw)
    check(draw_of("right"))
    caught(lambda: check(draw_of("one seed")))


def our_draw_with_log_probs(x_T_V: Tensor, settings: Sequence[Setting], inputs: Inputs) -> Tensor:
    """Of a tile that was asked for everything else before."""
    ids_T = torch.zeros(len(x_T_V), dtype=torch.int64, device=DEVICE)
    tile = TritonTile(x_T_V, targets_T=ids_T)
    tile.rank(ids_T, None)
    tile.log_tail_mass(tile.top_k_ids(5, x_T_V.shape[1]))
    return tile.draw_from(tile.support(*row_parameters(settings)), *inputs)


def test_the_stream_depends_on_what_else_is_asked_and_on_replay() -> None:
    """The same buffers launched again, as a replayed graph does, with log-probs beside and without:
    one stream."""
    settings, x_T_V = [Setting(top_k=20)] * ROWS, row(FLAT, ROWS)
    want = our_draw(x_T_V, settings, inputs_of(ROWS)).tolist()

    def check(*draws: Draw) -> None:
        buffers = words_inputs(*inputs_of(ROWS), DEVICE)
        for draw in draws:
            assert draw(x_T_V, settings, buffers).tolist() == want  # type: ignore[arg-type]

    assert_draws(our_draw_with_log_probs, x_T_V, settings)
    check(our_draw, our_draw_with_log_probs, our_draw)
    check(draw_of("right"), draw_of("right"))
    caught(lambda: check(draw_of("advancing"), draw_of("advancing")))


# --- numbers


def number_of(mode: str, x_T_V: Tensor, targets_T: Tensor, k: int = 1) -> list[float]:
    rows, vocab = x_T_V.shape
    result_T = torch.empty(rows, device=DEVICE)
    size = square(vocab) if mode in ("guarded", "unguarded") else block(vocab)
    wrong_kernels.number[(rows,)](x_T_V, targets_T, result_T, vocab, k, MODE=mode, BLOCK=size)
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
    # All three tokens, since the label joins the two that top-k keeps.
    want = pytest.approx(float(oracle.logprobs(x_T_V[0].cpu().numpy())[0]), abs=1e-5)
    for guard in (True, False):
        guarded_T = torch.tensor([guard], device=DEVICE)
        found = TritonTile(x_T_V).truncate([Processing(top_k=2)], ids_T, guarded_T)
        assert found.processed_T.tolist() == [want if guard else -math.inf]
    assert number_of("guarded", x_T_V, ids_T, k=2) == [want]
    assert number_of("unguarded", x_T_V, ids_T, k=2) != [want]


def test_a_head_padded_beyond_the_tokenizer() -> None:
    """Rows of the head past the tokenizer's last id are neither listed nor counted before others,
    however large they come out."""
    x_V, tokenizer = np.append(FLAT, [9.0, 8.0, 7.0, 6.0]).astype(np.float32), len(FLAT)
    x_T_V, ids_T = row(x_V, times=4), torch.tensor([0, 17, 30, 59], device=DEVICE)
    want = [oracle.rank(FLAT, token) for token in ids_T.tolist()]
    tile = TritonTile(x_T_V, targets_T=ids_T, token_id_limit=tokenizer)
    assert tile.rank(ids_T, tokenizer).tolist() == want
    assert torch.equal(tile.top_k_ids(5, tokenizer), reference.top_k_ids(row(FLAT, 4), 5))
    assert number_of("rank below k", x_T_V, ids_T, k=tokenizer) == want
    assert number_of("rank", x_T_V, ids_T) != want


Candidates = Callable[[Tensor, LinearHead, Tensor], Tensor]


def our_candidates(route: str) -> Candidates:
    def candidates(hidden_T_H: Tensor, head: LinearHead, ids_T_C: Tensor) -> Tensor:
        targets_T = torch.zeros(len(hidden_T_H), dtype=torch.int64, device=DEVICE)
        found = linear_logprobs(
            hidden_T_H, head, targets_T, candidate_ids_T_C=ids_T_C, route=route
        ).candidate_logprobs_T_C
        assert found is not None
        return found

    return candidates


def candidates_of(mode: str) -> Candidates:
    def candidates(hidden_T_H: Tensor, head: LinearHead, ids_T_C: Tensor) -> Tensor:
        x_T_V = hidden_T_H @ head.weight_V_H.t()
        rows, vocab = x_T_V.shape
        ids_T_C = ids_T_C.expand(rows, -1).contiguous()
        found_T_C = torch.empty(ids_T_C.shape, device=DEVICE)
        wrong_kernels.logprobs_at[(ids_T_C.numel(),)](
            x_T_V, ids_T_C, found_T_C, vocab, *ids_T_C.shape, MODE=mode, BLOCK=block(vocab)
        )
        return found_T_C.masked_fill(ids_T_C < 0, math.nan)

    return candidates


def test_candidates_are_counted_as_rows() -> None:
    """[T, C] ids stay two-dimensional, [1, C] serve all rows, and nothing is flattened to T * C."""
    hidden_T_H = torch.randn(3, 8, generator=torch.Generator().manual_seed(0)).to(DEVICE)
    head = LinearHead(torch.eye(8, device=DEVICE).repeat(4, 1).contiguous())
    ids_1_C = torch.tensor([[1, -1, 31, 9]], device=DEVICE)
    logprobs_T_V = torch.log_softmax(hidden_T_H.double() @ head.weight_V_H.double().t(), dim=1)
    want_T_C = logprobs_T_V[:, ids_1_C[0].clamp(min=0)].masked_fill(ids_1_C < 0, math.nan)

    def check(candidates: Candidates) -> None:
        for ids in (ids_1_C, ids_1_C.repeat(3, 1)):
            found_T_C = candidates(hidden_T_H, head, ids).double()
            torch.testing.assert_close(found_T_C, want_T_C, rtol=0, atol=1e-5, equal_nan=True)

    for route in ("fused", "tiled", "eager"):
        check(our_candidates(route))
    check(candidates_of("right"))
    caught(lambda: check(candidates_of("flattened")))
