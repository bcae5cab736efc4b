"""What a workload costs at least: FLOPs and bytes counted from the model's config."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.workloads import Mixed, Sampling, Scoring, Work


@dataclass(frozen=True)
class Shape:
    """A dense decoder with gated feed-forward layers, as Llama, Qwen and SmolLM2 are."""

    hidden: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    intermediate: int
    vocab: int

    @classmethod
    def of(cls, config: dict[str, Any]) -> Shape:
        """From a model's config.json."""
        heads = config["num_attention_heads"]
        return cls(
            hidden=config["hidden_size"],
            layers=config["num_hidden_layers"],
            heads=heads,
            kv_heads=config.get("num_key_value_heads", heads),
            head_dim=config.get("head_dim") or config["hidden_size"] // heads,
            intermediate=config["intermediate_size"],
            vocab=config["vocab_size"],
        )

    @property
    def body_flops(self) -> int:
        """Of the matrix products of one token in the body."""
        attention = self.hidden * self.head_dim * (2 * self.heads + 2 * self.kv_heads)
        return 2 * self.layers * (attention + 3 * self.hidden * self.intermediate)

    @property
    def head_flops(self) -> int:
        """Of one row of the head."""
        return 2 * self.hidden * self.vocab

    @property
    def weights(self) -> int:
        """Parameters read by a step, the head's included and the embeddings not."""
        return (self.body_flops + self.head_flops) // 2

    @property
    def kept_numbers(self) -> int:
        """Of keys and values of one position, all layers."""
        return 2 * self.layers * self.kv_heads * self.head_dim

    def attention_flops(self, pairs: int) -> int:
        """Of scores and weighted sums over so many (query, key) pairs of one layer, all layers."""
        return 4 * self.layers * self.heads * self.head_dim * pairs


def _pairs(work: Work) -> int:
    """(query, key) pairs, each prompt's own counted once."""
    if isinstance(work, Mixed):
        return _pairs(work.scoring) + _pairs(work.sampling)
    if isinstance(work, Sampling):
        return sum(_triangle(len(p) + work.max_tokens - 1) for p in work.prompts)
    return sum(
        _triangle(len(p)) + sum(_triangle(len(p) + len(c)) - _triangle(len(p)) for c in completions)
        for p, completions in work.groups
    )


def _triangle(n: int) -> int:
    return n * (n + 1) // 2


def flops(shape: Shape, work: Work) -> int:
    """That must be done, prompts computed once."""
    products = work.distinct_tokens * shape.body_flops + work.rows * shape.head_flops
    return products + shape.attention_flops(_pairs(work))


def bytes_read(shape: Shape, work: Work, width: int) -> int:
    """At least: weights once for scoring and once a decoding step; keys and values when decoding.

    Args:
        shape: the model's.
        work: the workload.
        width: bytes of a parameter, and of a kept key's or value's number.
    """
    if isinstance(work, Mixed):
        return bytes_read(shape, work.scoring, width) + bytes_read(shape, work.sampling, width)
    if isinstance(work, Scoring):
        return shape.weights * width
    return (work.max_tokens * shape.weights + _kept_positions(work) * shape.kept_numbers) * width


def _kept_positions(work: Sampling) -> int:
    """Whose keys and values decoding reads: a step, every position before its own.

    The first token comes of the prompt's own pass, so that there is a step less than tokens.
    """
    steps = work.max_tokens - 1
    return sum(steps * len(prompt) + _triangle(steps) - steps for prompt in work.prompts)


def least_seconds(flops: float, moved_bytes: float, machine: Mapping[str, float]) -> float:
    """What the machine's rates allow: the one convention of every limit and floor.

    Args:
        flops: of matrix products.
        moved_bytes: read, and written where that is counted.
        machine: its matrix rate, and its copy rate of bytes read and bytes written together.
    """
    products = flops / machine["matrix_flops_per_second"]
    return max(products, moved_bytes / machine["copy_bytes_per_second"])


def median_rates(samples: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """The median of each rate over what was measured of it, for `least_seconds`."""
    return {name: statistics.median(sample[name] for sample in samples) for name in samples[0]}
