"""The definitions of docs/mathematics.md for one row at a time, in float64 and Python integers.

Written from the definitions alone, by whole sorts, and never imported by the service: what
`scoring_service/kernels/reference.py` is checked against. x_V is always a float32 row, because
ties and orders are defined on x as divided in fp32.
"""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]
Ids = NDArray[np.int64]
Mask = NDArray[np.bool_]

MASS_BITS = 200
"""Float64 masses become integers of 2**-200: their sums and comparisons below are exact."""


def scaled(logits: F32, temperature: float) -> F32:
    """Logits / temperature with one correctly rounded fp32 division an element."""
    return np.divide(logits, np.float32(temperature), dtype=np.float32)


def logsumexp(x_V: F32) -> float:
    """log(sum(exp(x))), the sum by `math.fsum`."""
    x = x_V.astype(np.float64)
    return float(x.max()) + math.log(math.fsum(np.exp(x - x.max())))


def logprobs(x_V: F32) -> F64:
    """Log-softmax over the full vocabulary."""
    return x_V.astype(np.float64) - logsumexp(x_V)


def entropy(x_V: F32) -> float:
    """-sum p log p in nats, over the tokens with p > 0."""
    logprob = logprobs(x_V)
    logprob = logprob[logprob > -math.inf]
    return math.fsum(-np.exp(logprob) * logprob)


def best_first(x_V: F32) -> Ids:
    """Every id, largest x first, equal x to the lower id."""
    ids = np.arange(len(x_V))
    return np.lexsort((ids, -x_V.astype(np.float64)))


def top_k_ids(x_V: F32, k: int) -> Ids:
    """The first k of `best_first`."""
    return best_first(x_V)[:k]


def rank(x_V: F32, token_id: int, token_id_limit: int | None = None) -> int:
    """1 + the tokens with larger x, or equal x and a lower id; 0 at or past the limit."""
    limit = len(x_V) if token_id_limit is None else token_id_limit
    if token_id >= limit:
        return 0
    own = x_V[token_id]
    larger = int(np.count_nonzero(x_V[:limit] > own))
    return 1 + larger + int(np.count_nonzero(x_V[:token_id] == own))


def log_tail_mass(x_V: F32, listed: Ids) -> float:
    """Log of the summed probability of the tokens that are not listed; -inf when there is none."""
    outside = np.delete(x_V.astype(np.float64), listed)
    outside = outside[outside > -math.inf]
    if len(outside) == 0:
        return -math.inf
    top = float(outside.max())
    return top + math.log(math.fsum(np.exp(outside - top))) - logsumexp(x_V)


def _ascending_masses(x_V: F32, alive: Mask) -> tuple[Ids, list[int]]:
    """The alive ids by (x, id), and the running sum of their masses exp(x - max)."""
    ids = np.flatnonzero(alive)
    ids = ids[np.lexsort((ids, x_V[ids]))]
    x = x_V[ids].astype(np.float64)
    running, total = [], 0
    for mass in np.ldexp(np.exp(x - x[-1]), MASS_BITS).tolist():
        total += int(mass)
        running.append(total)
    return ids, running


def top_k_survivors(x_V: F32, top_k: int) -> Mask:
    """x at or above the k-th largest, all its ties included; never a token at -inf."""
    alive = x_V > -math.inf
    if 0 < top_k < len(x_V):
        alive &= x_V >= np.sort(x_V)[::-1][top_k - 1]
    return alive


def support(x_V: F32, top_k: int = 0, top_p: float = 1.0, min_p: float = 0.0) -> Mask:
    """Top-k, then top-p on what it left, then min-p.

    The nucleus drops the tokens whose cumulative mass, ascending by (x, id), is at most 1 - p of
    what top-k left, compared exactly, and never the last.
    """
    keep = top_k_survivors(x_V, top_k)
    if top_p < 1.0:
        ids, running = _ascending_masses(x_V, keep)
        bound = (1 - Fraction(top_p)) * running[-1]
        dropped = sum(mass * bound.denominator <= bound.numerator for mass in running[:-1])
        keep[ids[:dropped]] = False
    if min_p > 0.0:
        x = x_V.astype(np.float64)
        keep &= x - x.max() >= np.log(np.float64(min_p))
    return keep


def cumulative_shares(x_V: F32, top_k: int) -> tuple[Ids, F64]:
    """Ids that top-k left, ascending by (x, id), and the share of the mass up to each of them."""
    ids, running = _ascending_masses(x_V, top_k_survivors(x_V, top_k))
    return ids, np.array([mass / running[-1] for mass in running])


def nucleus_edge(x_V: F32, top_k: int, top_p: float, within: float) -> Mask:
    """Tokens whose cumulative mass lies within `within` of 1 - p: where supports may differ."""
    edge = np.zeros(len(x_V), dtype=bool)
    if top_p < 1.0:
        ids, shares = cumulative_shares(x_V, top_k)
        edge[ids] = np.abs(shares - (1.0 - top_p)) <= within
    return edge


def log_kept_mass(x_V: F32, keep_V: Mask) -> float:
    """Log of the probability of the kept tokens before truncation."""
    kept = logprobs(x_V)[keep_V]
    return math.log(math.fsum(np.exp(kept - kept.max()))) + float(kept.max())


def processed_logprobs(x_V: F32, keep_V: Mask) -> F64:
    """Log-prob - log kept mass inside the support, -inf outside it."""
    return np.where(keep_V, logprobs(x_V) - log_kept_mass(x_V, keep_V), -math.inf)


def philox4x32(counter: tuple[int, ...], key: tuple[int, ...]) -> tuple[int, ...]:
    """Philox4x32-10 on Python integers, as the Random123 paper writes one round."""
    c, k = list(counter), list(key)
    for _ in range(10):
        product0, product2 = 0xD2511F53 * c[0], 0xCD9E8D57 * c[2]
        c = [
            (product2 >> 32) ^ c[1] ^ k[0],
            product2 % 2**32,
            (product0 >> 32) ^ c[3] ^ k[1],
            product0 % 2**32,
        ]
        k = [(k[0] + 0x9E3779B9) % 2**32, (k[1] + 0xBB67AE85) % 2**32]
    return tuple(c)


def token_word(seed: int, sample_index: int, position: int, token_id: int) -> int:
    """The word of one token: counter (id >> 2, position, sample index, domain 0), word id & 3."""
    counter = (token_id >> 2, position, sample_index, 0)
    return philox4x32(counter, (seed % 2**32, seed >> 32))[token_id & 3]


def race(x_V: F32, keep_V: Mask, seed: int, sample_index: int, position: int) -> list[float]:
    """log(E / p) of every token, p its processed probability: the drawn token has the least."""
    keys = []
    for token_id, logprob in enumerate(processed_logprobs(x_V, keep_V)):
        uniform = (token_word(seed, sample_index, position, token_id) + 0.5) / 2**32
        keys.append(math.log(-math.log1p(-uniform)) - float(logprob))
    return keys
