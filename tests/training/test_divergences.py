"""The numpy twin: needs no torch, and holds what it documents."""

from __future__ import annotations

import math
import subprocess
import sys

import numpy as np
import pytest

from scoring_client import divergences


def distributions(seed: int = 0, rows: int = 20, events: int = 9) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    p, q = rng.dirichlet(np.ones(events), rows), rng.dirichlet(np.ones(events), rows)
    return np.log(p), np.log(q)


def test_it_needs_no_torch() -> None:
    code = (
        "import sys; sys.modules['torch'] = None\n"
        "from scoring_client import divergences as d\n"
        "assert d.generalized_js([-1.0, -0.46], [-1.0, -0.46]) == 0\n"
        "assert d.mismatch_kl([-1.0], [-1.0]).k3 == 0"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_values_from_the_definitions() -> None:
    log_p, log_q = distributions()
    p, q = np.exp(log_p), np.exp(log_q)
    kl = (p * np.log(p / q)).sum(1)
    np.testing.assert_allclose(divergences.forward_kl(log_p, log_q), kl, rtol=1e-12)
    np.testing.assert_allclose(divergences.reverse_kl(log_q, log_p), kl, rtol=1e-12)
    for alpha in (0.1, 0.5, 0.75):
        m = alpha * p + (1 - alpha) * q
        js = alpha * (p * np.log(p / m)).sum(1) + (1 - alpha) * (q * np.log(q / m)).sum(1)
        ours = divergences.generalized_js(log_p, log_q, alpha)
        np.testing.assert_allclose(ours, js, rtol=1e-10)
        mirrored = divergences.generalized_js(log_q, log_p, 1 - alpha)
        np.testing.assert_allclose(mirrored, ours, rtol=1e-12)
        normalized = divergences.generalized_js(log_p, log_q, alpha, normalize=True)
        np.testing.assert_allclose(normalized, ours / (alpha * (1 - alpha)), rtol=1e-12)
    np.testing.assert_array_equal(divergences.generalized_js(log_p, log_p, 0.3), 0)
    with pytest.raises(ValueError, match="alpha must be in"):
        divergences.generalized_js(log_p, log_q, 0.0)


def test_limits_and_range() -> None:
    log_p, log_q = distributions(1)
    near = divergences.generalized_js(log_p, log_q, 1e-7, normalize=True)
    np.testing.assert_allclose(near, divergences.forward_kl(log_p, log_q), rtol=1e-4)
    near = divergences.generalized_js(log_p, log_q, 1 - 1e-7, normalize=True)
    np.testing.assert_allclose(near, divergences.reverse_kl(log_p, log_q), rtol=1e-4)
    with np.errstate(divide="ignore"):
        apart = np.log([[1.0, 0.0]]), np.log([[0.0, 1.0]])
    np.testing.assert_allclose(divergences.generalized_js(*apart), math.log(2))
    assert divergences.forward_kl(*apart) == math.inf


def test_impossible_events_count_for_nothing() -> None:
    log_p, log_q = distributions(2)
    gone = np.full((20, 1), -np.inf)
    for function in (divergences.forward_kl, divergences.generalized_js):
        padded = function(np.hstack([log_p, gone]), np.hstack([log_q, gone]))
        np.testing.assert_allclose(padded, function(log_p, log_q), rtol=1e-12)


def test_a_tail_that_candidates_exhaust() -> None:
    log_p, log_q = distributions(3, rows=1)
    order = np.argsort(-log_p)
    listed, rest = order[:, :3], order[:, 3:]
    take = np.take_along_axis
    tail = np.log(np.exp(take(log_p, rest, 1)).sum(1)) - 1e-5
    fine = divergences.top_k_buckets(
        log_q, listed, take(log_p, listed, 1), tail, rest[:, :2], take(log_p, rest[:, :2], 1)
    )
    assert np.isfinite(fine[0]).all()
    coarse = divergences.top_k_buckets(
        log_q, listed, take(log_p, listed, 1), tail, rest, take(log_p, rest, 1)
    )
    alone = divergences.top_k_buckets(log_q, listed, take(log_p, listed, 1), tail)
    np.testing.assert_allclose(divergences.reverse_kl(*coarse), divergences.reverse_kl(*alone))


def test_any_negative_id_is_none() -> None:
    """Labels are padded with -100, which lies before the first of a small vocabulary, too."""
    _, log_q = distributions(4, rows=2)
    ids, log_tail = np.array([[3, -100, 0], [-11, 2, -1]]), np.full(2, -1.0)
    listed, more = ids >= 0, np.array([[-100], [5]])
    teacher_N_M, student_N_M = divergences.top_k_buckets(
        log_q, ids, np.where(listed, -2.0, np.nan), log_tail, more, np.full((2, 1), -9.0)
    )
    for row, wanted in enumerate([[3, None, 0, None], [None, 2, None, 5]]):
        there = [i for i in wanted if i is not None]
        expected = [-np.inf if i is None else log_q[row, i] for i in wanted]
        rest = np.log(np.exp(np.delete(log_q[row], there)).sum())
        np.testing.assert_allclose(student_N_M[row], [*expected, rest], rtol=1e-12)
        assert [p == -np.inf for p in teacher_N_M[row, :4]] == [i is None for i in wanted]
    union = divergences.union_with_floor(log_q, ids, np.full((2, 3), -2.0), more, -20.0)
    assert [(side[0] == -np.inf).tolist() for side in union] == [[False, True, False, True]] * 2


def test_buckets_that_make_no_sense_are_refused() -> None:
    log_q, ids, log_p = np.log([[0.5, 0.25, 0.25]]), [[0]], [[-0.5]]
    refused = [
        ({}, "needs log_tail_masses"),
        ({"log_tail_masses": [-1.0], "tail": "rest"}, "tail must be"),
        ({"log_tail_masses": [-1.0], "candidate_ids": [[1]]}, "go together"),
        ({"log_tail_masses": [-1.0], "candidate_logprobs": [[-1.0]]}, "go together"),
    ]
    for options, message in refused:
        with pytest.raises(ValueError, match=message):
            divergences.top_k_buckets(log_q, ids, log_p, **options)
    with pytest.raises(ValueError, match="an id is 3, the student has 3"):
        divergences.top_k_buckets(log_q, [[3]], log_p, [-1.0])


def test_mismatch() -> None:
    sampler = np.array([-1.0, -2.0, -3.0])
    trainer = np.array([-1.5, -2.0, np.nan])
    found = divergences.mismatch_kl(trainer, sampler, [1, 1, 0])
    assert found.tokens == 2
    assert found.k1 == pytest.approx(0.25)
    assert found.k2 == pytest.approx(0.0625)
    assert found.k3 == pytest.approx((math.exp(-0.5) - 0.5) / 2)
    assert found.max_k3 == pytest.approx(math.exp(-0.5) - 0.5)
    with pytest.raises(ValueError, match="no token"):
        divergences.mismatch_kl(trainer, sampler, [0, 0, 0])
    with pytest.raises(ValueError, match="the mask has shape"):
        divergences.mismatch_kl(trainer, sampler, [1, 0])
    with pytest.raises(ValueError, match="the shapes differ"):
        divergences.mismatch_kl(trainer, sampler[:2])
