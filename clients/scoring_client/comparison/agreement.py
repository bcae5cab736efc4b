"""How far log-probs of the same tokens lie from one another, and how far they may.

A list of arrays is one array a text; entry i describes token i + 1. NaN where nothing is known.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Logprobs = Sequence[npt.NDArray[np.float64]]

MEAN_FACTOR, MAX_FACTOR = 2.0, 3.0
"""Rounding in another order goes as far again, and its largest error is one of thousands."""
MEAN_FLOOR, MAX_FLOOR = 1e-4, 2e-4
"""Nats that are never too far: what the tests hold the server to in float32."""


@dataclass(frozen=True, slots=True)
class Distance:
    """Differences of log-probs in nats, over the tokens of all texts."""

    max: float
    """Largest absolute difference."""
    mean: float
    """Mean absolute difference."""
    k3: float
    """Mean of r - 1 - log r with log r the difference; what trainers log as "mismatch KL"."""
    tokens: int
    """Tokens that were compared."""

    def is_within(self, yardstick: Distance) -> bool:
        """Whether this is no more than rounding, given how far rounding alone goes."""
        return (
            self.tokens > 0
            and self.mean <= max(MEAN_FACTOR * yardstick.mean, MEAN_FLOOR)
            and self.max <= max(MAX_FACTOR * yardstick.max, MAX_FLOOR)
        )

    def scaled(self, factor: float) -> Distance:
        """Return the distance of log-probs whose logits were multiplied by ``factor``."""
        return Distance(self.max * factor, self.mean * factor, self.k3 * factor**2, self.tokens)


def distance(found: Logprobs, reference: Logprobs) -> Distance:
    """Return how far ``found`` lies from ``reference``, where both are known.

    Raises:
        ValueError: their shapes differ.
    """
    pairs = [(np.asarray(a), np.asarray(b)) for a, b in zip(found, reference, strict=True)]
    for text, (ours, theirs) in enumerate(pairs):
        if ours.shape != theirs.shape:
            raise ValueError(f"text {text}: {ours.shape} log-probs against {theirs.shape}")
    both = [(a - b)[~(np.isnan(a) | np.isnan(b))] for a, b in pairs]
    log_ratio = np.concatenate(both) if both else np.empty(0)
    if not len(log_ratio):
        return Distance(np.nan, np.nan, np.nan, 0)
    with np.errstate(over="ignore"):
        k3 = float(np.mean(np.expm1(log_ratio) - log_ratio))
    size = np.abs(log_ratio)
    return Distance(float(size.max()), float(size.mean()), k3, len(log_ratio))
