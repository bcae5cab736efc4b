"""A model of 258 tokens whose numbers follow from the context alone: what answers are held against.

Its tokens are the 256 bytes and two special ones; its logits are random but fixed for each context
and version of the weights.
"""

import zlib
from dataclasses import dataclass

import numpy as np

VOCAB_SIZE = 258
BOS = 256
EOS = 257


def encode(text: str, *, add_special_tokens: bool) -> list[int]:
    return ([BOS] if add_special_tokens else []) + list(text.encode())


def token_text(token_id: int) -> str:
    return "<special>" if token_id >= BOS else chr(token_id)


@dataclass(frozen=True)
class Row:
    """One row's truth, float32 like the answers."""

    logprobs_V: np.ndarray
    x_V: np.ndarray

    def entropy(self) -> float:
        return float(-(np.exp(self.logprobs_V) * self.logprobs_V).sum())

    def logsumexp(self) -> float:
        return float(np.logaddexp.reduce(self.x_V))

    def rank(self, token: int) -> int:
        return 1 + int((self.x_V > self.x_V[token]).sum())

    def support(self, top_k: int) -> np.ndarray:
        if top_k <= 0:
            return np.ones(VOCAB_SIZE, dtype=bool)
        return self.x_V >= np.sort(self.x_V)[-top_k]

    def log_kept_mass(self, top_k: int) -> float:
        return float(np.logaddexp.reduce(self.logprobs_V[self.support(top_k)]))

    def top(self, k: int) -> tuple[np.ndarray, np.ndarray]:
        ids = np.argsort(-self.x_V, kind="stable")[:k].astype(np.int32)
        return ids, self.logprobs_V[ids]

    def log_tail_mass(self, k: int) -> float:
        rest = np.setdiff1d(np.arange(VOCAB_SIZE), self.top(k)[0])
        return float(np.logaddexp.reduce(self.logprobs_V[rest])) if rest.size else -np.inf


def row(context: list[int], version: int = 0, temperature: float = 1.0) -> Row:
    """Return the distribution of the token that follows ``context``."""
    seed = zlib.crc32(np.asarray([version, *context], dtype=np.int64).tobytes())
    x_V = (np.random.default_rng(seed).normal(size=VOCAB_SIZE) * 3 / temperature).astype(np.float32)
    return Row((x_V - np.logaddexp.reduce(x_V)).astype(np.float32), x_V)


def draw(context: list[int], seed: int, sample_index: int, version: int = 0) -> int:
    """Return the token drawn after ``context``: a function of seed, index, position and weights."""
    position = len(context)
    rng = np.random.default_rng([seed & 0xFFFFFFFF, seed >> 32, sample_index, position])
    noise_V = rng.gumbel(size=VOCAB_SIZE)
    return int(np.argmax(row(context, version).x_V + noise_V))


def draw_sample(
    prompt: list[int], seed: int, sample_index: int, max_tokens: int, version: int = 0
) -> list[int]:
    tokens: list[int] = []
    while len(tokens) < max_tokens and (not tokens or tokens[-1] != EOS):
        tokens.append(draw(prompt + tokens, seed, sample_index, version))
    return tokens
