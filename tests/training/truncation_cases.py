"""Random rows and truncation settings that both vLLM's recorded answers and ours are made from.

Only numpy, and only the raw stream of PCG64: the recorder runs in vLLM's environment, the tests in
ours, and both must meet the same bits. The file of answers holds a digest of them.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

VECTORS = Path(__file__).with_name("vllm_top_k_top_p.npz")
SMALL_CASES = 1000
LARGE_CASES = 6
LARGE_VOCABULARY = 49152

F32 = NDArray[np.float32]


@dataclass(frozen=True)
class Case:
    """A batch of rows with parameters a row, as a caller would give them."""

    logits_T_V: F32
    top_k_T: NDArray[np.int64] | None
    """0, -1 and anything from V on mean off."""
    top_p_T: F32 | None

    @property
    def digest(self) -> bytes:
        """SHA-256 of everything that goes in."""
        parts = [self.logits_T_V.tobytes()]
        parts += [a.tobytes() for a in (self.top_k_T, self.top_p_T) if a is not None]
        return hashlib.sha256(b"|".join(parts)).digest()


class _Words:
    """Numbers from the raw 64-bit words of PCG64, whose stream numpy promises to keep."""

    def __init__(self, seed: int) -> None:
        self._bits = np.random.PCG64(seed)

    def uniform(self, count: int) -> NDArray[np.float64]:
        words = np.asarray(self._bits.random_raw(count), dtype=np.uint64)
        return ((words >> np.uint64(11)).astype(np.float64) + 0.5) * 2.0**-53

    def below(self, bound: int) -> int:
        return int(self.uniform(1)[0] * bound)

    def bell(self, count: int) -> NDArray[np.float64]:
        """About normal, by sums alone: a logarithm's last bit may differ between libraries."""
        return self.uniform(12 * count).reshape(12, count).sum(axis=0) - 6.0


def case(index: int) -> Case:
    """The case of this index, always the same; from SMALL_CASES on, of a real vocabulary."""
    words = _Words(0x5C0_0000 + index)
    large = index >= SMALL_CASES
    vocab = LARGE_VOCABULARY if large else (1, 2, 5, 17, 64, 100, 333, 1000)[words.below(8)]
    rows = 1 if large else 1 + words.below(3)
    logits_T_V = np.stack([_row(words, vocab) for _ in range(rows)])
    # Top-k alone, top-p alone, both.
    which = words.below(4)
    top_k_T = np.array([_top_k(words, vocab) for _ in range(rows)]) if which != 1 else None
    top_p_T = np.array([_top_p(words) for _ in range(rows)], np.float32) if which != 0 else None
    return Case(logits_T_V, top_k_T, top_p_T)


def _row(words: _Words, vocab: int) -> F32:
    kind = words.below(7)
    x_V = words.bell(vocab) * (0.5 + 4.5 * words.uniform(1)[0])
    if kind == 0:  # few values: ties everywhere, 0.0 with -0.0 among them
        x_V = np.round(x_V)
    elif kind == 1:  # one value
        x_V = np.full(vocab, (0.0, -3.25, 17.5)[words.below(3)])
    elif kind == 2:  # as a bfloat16 head leaves it
        bits = x_V.astype(np.float32).view(np.uint32) & np.uint32(0xFFFF0000)
        x_V = bits.view(np.float32).astype(np.float64)
    elif kind == 3:  # peaked: most of the row underflows beside the best
        x_V[words.below(vocab)] += (10.0, 40.0, 200.0)[words.below(3)]
    elif kind == 4:  # some tokens banned, never all
        banned = words.uniform(vocab) < 0.3
        banned[words.below(vocab)] = False
        x_V = np.where(banned, -np.inf, x_V)
    return x_V.astype(np.float32)


def _top_k(words: _Words, vocab: int) -> int:
    few, some = 1 + words.below(20), 1 + words.below(vocab)
    return (0, -1, few, few, some, some, 1, vocab - 1 or 1, vocab, vocab + 3)[words.below(10)]


def _top_p(words: _Words) -> float:
    # 0.5 and 0.75 put 1 - p exactly on the running mass of a row of equal values.
    any_p = 0.01 + 0.98 * words.uniform(1)[0]
    return (1.0, 0.5, 0.75, 0.1, 0.9, 0.95, 0.999, any_p, any_p)[words.below(9)]
