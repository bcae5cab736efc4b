"""Workloads as data: what is to be scored or sampled, from a seed. Imports numpy alone.

Each comes in a `small` size (2 cores, below a minute for this service) and a `gpu` size.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

SEED = 20_261_121


@dataclass(frozen=True)
class Scoring:
    """Prompts with completions; wanted are the completions' log-probs and, with k, their top-K."""

    groups: list[tuple[list[int], list[list[int]]]]
    k: int = 0

    @property
    def known_by_chance(self) -> int:
        """Tokens that a cache may know: a prompt of one token may come twice, no longer one."""
        return sum(len(prompt) == 1 for prompt, _ in self.groups)

    @property
    def tokens(self) -> int:
        """Prompt + completion tokens of every sequence, as a caller counts them."""
        return sum(len(prompt) + len(c) for prompt, completions in self.groups for c in completions)

    @property
    def distinct_tokens(self) -> int:
        """Tokens that have to go through the body when each prompt is computed once."""
        return sum(len(p) + sum(map(len, completions)) for p, completions in self.groups)

    @property
    def rows(self) -> int:
        """Rows that have to go through the head."""
        return sum(len(c) for _, completions in self.groups for c in completions)


@dataclass(frozen=True)
class Sampling:
    """Prompts to continue by exactly `max_tokens` tokens each, with log-probs."""

    prompts: list[list[int]]
    max_tokens: int
    top_k: int = 50
    top_p: float = 0.95

    @property
    def known_by_chance(self) -> int:
        """Tokens that a cache may know, as of `Scoring`."""
        return sum(len(prompt) == 1 for prompt in self.prompts)

    @property
    def tokens(self) -> int:
        """Tokens to draw."""
        return len(self.prompts) * self.max_tokens

    @property
    def distinct_tokens(self) -> int:
        """Tokens that go through the body."""
        return sum(len(p) + self.max_tokens - 1 for p in self.prompts)

    @property
    def rows(self) -> int:
        """Rows that have to go through the head."""
        return self.tokens


@dataclass(frozen=True)
class Mixed:
    """Scoring traffic in calls of one group each while samples are drawn."""

    scoring: Scoring
    sampling: Sampling

    @property
    def known_by_chance(self) -> int:
        """Of what is scored: the samples have the same prompts again and again."""
        return self.scoring.known_by_chance

    @property
    def tokens(self) -> int:
        """Tokens scored; what sampling gets meanwhile shows in its latencies."""
        return self.scoring.tokens

    @property
    def distinct_tokens(self) -> int:
        """Tokens that go through the body."""
        return self.scoring.distinct_tokens + self.sampling.distinct_tokens

    @property
    def rows(self) -> int:
        """Rows that have to go through the head."""
        return self.scoring.rows + self.sampling.rows


Work = Scoring | Sampling | Mixed


@dataclass
class _Draw:
    """Random token ids below a vocabulary's size."""

    vocab: int
    rng: np.random.Generator

    def ids(self, n: int) -> list[int]:
        return self.rng.integers(0, self.vocab, n).tolist()

    def groups(self, prompts: int, completions: int, prompt: int, completion: int) -> list:
        return [
            (self.ids(prompt), [self.ids(completion) for _ in range(completions)])
            for _ in range(prompts)
        ]

    def skewed(self, sequences: int, longest: int) -> list:
        """Log-normal lengths, as real rollouts have them: many short, a few long."""
        drawn = self.rng.lognormal(mean=np.log(longest / 8), sigma=1.0, size=sequences)
        lengths = np.clip(drawn, 8, longest).astype(int)
        return [(self.ids(16), [self.ids(int(n))]) for n in lengths]


def build(name: str, size: str, vocab: int, repetition: int = 0) -> Work:
    """The workload of that name and size for a model with that vocabulary.

    Every repetition of every workload has tokens of its own, so that no cache knows a prompt from
    another one: neither from the warm-up, repetition 0, nor from another workload. Lengths are the
    same in all repetitions.

    Raises:
        KeyError: there is none.
    """
    work = WORKLOADS[name][size](_Draw(vocab, np.random.default_rng(SEED)))
    rng = np.random.default_rng([SEED, zlib.crc32(name.encode()), repetition])
    return _with_new_tokens(work, vocab, rng)


def _with_new_tokens(work: Work, vocab: int, rng: np.random.Generator) -> Work:
    def fresh(ids: list[int]) -> list[int]:
        return rng.integers(0, vocab, len(ids)).tolist()

    if isinstance(work, Mixed):
        scoring = _with_new_tokens(work.scoring, vocab, rng)
        sampling = _with_new_tokens(work.sampling, vocab, rng)
        assert isinstance(scoring, Scoring)
        assert isinstance(sampling, Sampling)
        return Mixed(scoring, sampling)
    if isinstance(work, Sampling):
        return replace(work, prompts=[fresh(prompt) for prompt in work.prompts])
    return replace(work, groups=[(fresh(p), [fresh(c) for c in cs]) for p, cs in work.groups])


Maker = Callable[[_Draw], Work]


def _scoring(prompts: int, completions: int, prompt: int, completion: int, k: int = 0) -> Maker:
    return lambda draw: Scoring(draw.groups(prompts, completions, prompt, completion), k)


def _sampling(batch: int, prompt: int, new: int) -> Maker:
    return lambda draw: Sampling([draw.ids(prompt) for _ in range(batch)], new)


def _skewed(sequences: int, longest: int) -> Maker:
    return lambda draw: Scoring(draw.skewed(sequences, longest))


def _mixed(scored: int, batch: int) -> Maker:
    return lambda draw: Mixed(
        Scoring(draw.groups(scored, 1, 64, 128)), Sampling([draw.ids(64) for _ in range(batch)], 32)
    )


WORKLOADS: dict[str, dict[str, Maker]] = {
    "grpo": {"small": _scoring(4, 8, 256, 64), "gpu": _scoring(32, 16, 1024, 512)},
    "wide": {"small": _scoring(1, 16, 1024, 64), "gpu": _scoring(8, 64, 4096, 256)},
    "flat": {"small": _scoring(16, 1, 64, 256), "gpu": _scoring(256, 1, 256, 1024)},
    "topk-20": {"small": _scoring(8, 1, 1, 256, k=20), "gpu": _scoring(64, 1, 1, 2048, k=20)},
    "topk-128": {"small": _scoring(8, 1, 1, 256, k=128), "gpu": _scoring(64, 1, 1, 2048, k=128)},
    "topk-1024": {"small": _scoring(8, 1, 1, 256, k=1024), "gpu": _scoring(64, 1, 1, 2048, k=1024)},
    "topk-rows": {
        "small": _scoring(8, 1, 192, 64, k=128),
        "gpu": _scoring(64, 1, 1536, 512, k=128),
    },
    "long": {"small": _scoring(1, 1, 1, 4095), "gpu": _scoring(1, 1, 1, 32_767)},
    "skewed": {"small": _skewed(16, 1024), "gpu": _skewed(256, 8192)},
    "sample-1": {"small": _sampling(1, 64, 64), "gpu": _sampling(1, 64, 256)},
    "sample-16": {"small": _sampling(16, 64, 64), "gpu": _sampling(16, 64, 256)},
    "sample-64": {"small": _sampling(64, 64, 64), "gpu": _sampling(64, 64, 256)},
    "mixed": {"small": _mixed(16, 2), "gpu": _mixed(256, 32)},
}
