"""Chi-square of 200,000 draws against the float64 processed distribution.

The seeds are fixed, so that the outcome is too; what varies from draw to draw is the position, the
sample index or the seed, as named beside each setting.
"""

from __future__ import annotations

import math

import numpy as np
import pytest

from scoring_service.kernels import reference
from tests.kernels import oracle
from tests.kernels.cases import Setting, promoted
from tests.kernels.checks import assert_draws


def spread(vocab: int, deviation: float) -> oracle.F32:
    return (np.random.default_rng(vocab).normal(size=vocab) * deviation).astype(np.float32)


def tied(vocab: int) -> oracle.F32:
    """Four values only: every edge falls among equals."""
    return np.repeat(np.array([1.0, 0.5, 0.0, -1.0], dtype=np.float32), vocab)[: 4 * vocab : 4]


def peaked(vocab: int) -> oracle.F32:
    row = spread(vocab, 1.0)
    row[7] += np.float32(9)
    return row


def banned(vocab: int) -> oracle.F32:
    row = spread(vocab, 1.0)
    row[::3] = -math.inf
    return row


CASES = {
    "neutral": (spread(61, 1.5), Setting(), "position", 7),
    "top_p_0.1": (spread(101, 0.6), Setting(top_p=promoted(0.1)), "position", 8),
    "top_p_0.05": (spread(101, 0.4), Setting(top_p=promoted(0.05)), "sample_index", 9),
    "top_p_0.9": (spread(64, 1.5), Setting(top_p=promoted(0.9)), "seed", 10),
    "top_k_1": (spread(50, 1.0), Setting(top_k=1), "position", 11),
    "top_k_3": (spread(50, 1.0), Setting(top_k=3), "seed", 2**63 + 12),
    "top_k_100": (spread(199, 1.0), Setting(top_k=100), "position", 2**64 - 1),
    "min_p": (spread(80, 1.5), Setting(min_p=promoted(0.1)), "sample_index", 14),
    "all_together": (
        spread(120, 1.2),
        Setting(promoted(0.8), 40, promoted(0.9), promoted(0.02)),
        "seed",
        2**40 + 15,
    ),
    "tied_logits": (np.full(50, 2.5, dtype=np.float32), Setting(), "position", 16),
    "tied_at_top_k": (tied(48), Setting(top_k=3), "sample_index", 17),
    "tied_at_the_nucleus": (tied(48), Setting(top_p=promoted(0.3)), "seed", 18),
    "cold": (spread(60, 1.0), Setting(promoted(0.3)), "sample_index", 19),
    "hot": (spread(60, 3.0), Setting(promoted(2.0)), "seed", 2**63 + 2**32 + 20),
    "peaked": (peaked(60), Setting(), "position", 21),
    "banned_tokens": (banned(60), Setting(top_p=promoted(0.8)), "position", 22),
}


@pytest.mark.parametrize("name", CASES)
def test_draws_follow_the_processed_distribution(name: str) -> None:
    logits, setting, varies, seed = CASES[name]
    assert_draws(reference.draw, oracle.scaled(logits, setting.temperature), setting, varies, seed)
