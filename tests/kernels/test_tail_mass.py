"""Log tail mass against float64 sums over the excluded tokens: 1e-5 relative, of the mass."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from scoring_service.kernels import eager, reference
from tests.kernels import cases, oracle
from tests.kernels.checks import assert_tail_masses
from tests.torch_threads import torch_threads


@pytest.mark.parametrize("k", [1, 20, 128, 1024, 8192, 49151, 49152])
@pytest.mark.parametrize("peak", [0.0, 40.0, 200.0])
def test_peaked_rows(peak: float, k: int) -> None:
    """One logit raised by 0, 40 or 200; with 200 the mass is e**-190, far below any 1 - sum."""
    rng = np.random.default_rng(int(peak))
    x_T_V = (rng.normal(size=(2, 49152)) * np.array([[1.0], [3.0]])).astype(np.float32)
    x_T_V[:, 777] += np.float32(peak)
    assert_tail_masses(reference.log_tail_mass, x_T_V, k)


@pytest.mark.parametrize("k", [1, 2, 255, 999, 1000])
def test_every_kind_of_row(k: int) -> None:
    """Ties at the K-th place, banned tokens (which have no mass), rows of equal values."""
    rng = np.random.default_rng(k)
    rows = [cases.random_row(rng, 1000) for _ in range(20)] + [
        kind(rng, 1000) for kind in cases.KINDS
    ]
    assert_tail_masses(reference.log_tail_mass, np.stack(rows), k)


def bits_of_each(numbers_T: torch.Tensor) -> list[bytes]:
    return [number.tobytes() for number in numbers_T.numpy()]


@pytest.mark.parametrize("threads", [1, 2, 4])
def test_bits_of_a_row_alone_and_in_company(threads: int) -> None:
    """Whatever number of threads torch has; rows of real vocabularies, where it divides sums.

    Of all sums over a row: logsumexp, entropy, tail.
    """
    x_T_V = torch.from_numpy(np.random.default_rng(1).normal(size=(12, 50_257)).astype(np.float32))
    ids = reference.top_k_ids(x_T_V, 20)

    def sums(first: int, stop: int) -> list[bytes]:
        rows = x_T_V[first:stop]
        masses = eager.row_masses(rows)
        tails_T = eager.log_tail_mass(rows, masses, ids[first:stop])
        found = (masses.logsumexp_T, eager.entropy(rows, masses), tails_T)
        return [b"".join(of_row) for of_row in zip(*map(bits_of_each, found), strict=True)]

    with torch_threads(threads):
        together = sums(0, 12)
        for count in (1, 2, 5):
            alone = [sums(first, min(12, first + count)) for first in range(0, 12, count)]
            assert [row for rows in alone for row in rows] == together


def test_equal_values() -> None:
    """Of V equal tokens, V - K share the tail."""
    x = torch.full((1, 4096), -7.5)
    ids = reference.top_k_ids(x, 1024)
    got = reference.log_tail_mass(x, reference.logsumexp(x), ids).item()
    assert got == pytest.approx(math.log(0.75), abs=1e-7)


def test_ids_past_a_limit_count_as_tail() -> None:
    """With the best token past the limit the tail is nearly everything, and never above it."""
    x_V = np.linspace(-30, 5, 64, dtype=np.float32)
    ids = oracle.top_k_ids(x_V[:32], 8)
    x = torch.from_numpy(x_V)[None]
    got = reference.log_tail_mass(x, reference.logsumexp(x), torch.from_numpy(ids)[None]).item()
    assert got == pytest.approx(oracle.log_tail_mass(x_V, ids), abs=1e-6)
    assert got <= 0
