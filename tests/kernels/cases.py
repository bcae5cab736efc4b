"""Random rows and truncation settings that meet ties, bans and knife edges often."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TypedDict

import numpy as np

from scoring_service.types import Processing
from tests.kernels.oracle import F32


class Truncation(TypedDict):
    """The keyword arguments of `support`."""

    top_k: int
    top_p: float
    min_p: float


@dataclass(frozen=True)
class Setting:
    """Sampling parameters, each float32 promoted to double as it comes off the wire."""

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0

    @property
    def processing(self) -> Processing:
        return Processing(self.temperature, max(0, self.top_k), self.top_p, self.min_p)

    @property
    def truncation(self) -> Truncation:
        return {"top_k": self.top_k, "top_p": self.top_p, "min_p": self.min_p}


def promoted(value: float) -> float:
    """A proto `float` as the server sees it: rounded to fp32, held in a double."""
    return float(np.float32(value))


def random_setting(rng: np.random.Generator, vocab: int) -> Setting:
    temperature = rng.choice([1.0, 0.3, 0.7, 1.3, 2.0, rng.uniform(0.25, 3.0)])
    few, some = int(rng.integers(1, 12)), int(rng.integers(1, vocab + 1))
    top_k = rng.choice([0, -1, few, some, vocab - 1, vocab, vocab + 3])
    # The dyadic values put 1 - p exactly on the cumulative mass of a row of equal values.
    top_p = rng.choice([1.0, 0.5, 0.75, 0.1, 0.9, 0.95, 0.05, rng.uniform(0.01, 1.0)])
    min_p = rng.choice([0.0, 0.0, 0.05, 0.5, 1.0, rng.uniform(1e-6, 0.3)])
    return Setting(promoted(temperature), int(top_k), promoted(top_p), promoted(min_p))


def continuous(rng: np.random.Generator, vocab: int) -> F32:
    return (rng.normal(size=vocab) * rng.uniform(0.5, 5.0)).astype(np.float32)


def quantised(rng: np.random.Generator, vocab: int) -> F32:
    """Few distinct values: ties everywhere, 0.0 with -0.0 (a rounded small negative) among them."""
    step = rng.choice([0.5, 1.0, 2.0])
    row: F32 = (np.round(rng.normal(size=vocab) * 2 / step) * step).astype(np.float32)
    return row


def equal(rng: np.random.Generator, vocab: int) -> F32:
    return np.full(vocab, rng.choice([0.0, -3.25, 17.5]), dtype=np.float32)


def two_levels(rng: np.random.Generator, vocab: int) -> F32:
    return np.where(rng.random(vocab) < 0.5, 1.5, rng.choice([1.0, -40.0])).astype(np.float32)


def bfloat16_like(rng: np.random.Generator, vocab: int) -> F32:
    """Values with 8 significant bits, as a bf16 head leaves them."""
    bits = (rng.normal(size=vocab) * 4).astype(np.float32).view(np.uint32)
    return (bits & np.uint32(0xFFFF0000)).view(np.float32)


def peaked(rng: np.random.Generator, vocab: int) -> F32:
    row = continuous(rng, vocab)
    row[rng.integers(vocab)] += np.float32(rng.choice([10.0, 40.0]))
    return row


KINDS = (continuous, quantised, equal, two_levels, bfloat16_like, peaked)


def random_row(rng: np.random.Generator, vocab: int) -> F32:
    """A row of one of the kinds; every third has banned tokens at -inf, but never all."""
    row = KINDS[rng.integers(len(KINDS))](rng, vocab)
    if rng.random() < 1 / 3:
        banned = rng.random(vocab) < rng.choice([0.05, 0.5])
        banned[rng.integers(vocab)] = False
        row[banned] = -math.inf
    return row
