"""Random prompt groups of the shapes that go wrong: skewed lengths, single tokens, many parts."""

from __future__ import annotations

import numpy as np

from tests.engine.scoring import Group


def random_groups(
    rng: np.random.Generator,
    count: int,
    vocab: int,
    longest_prompt: int,
    longest: int,
    most_completions: int = 5,
) -> list[Group]:
    """Groups of one to several completions; most sequences are short and a few long."""

    def ids(length: int) -> list[int]:
        return rng.integers(0, vocab, size=length).tolist()

    def length(most: int) -> int:
        skewed = 1 + int((most - 1) * rng.random() ** 3)
        return int(rng.choice([1, most, skewed], p=[0.15, 0.1, 0.75]))

    groups = []
    for _ in range(count):
        completions = rng.integers(1, most_completions + 1)
        groups.append(
            (ids(length(longest_prompt)), [ids(length(longest)) for _ in range(completions)])
        )
    return groups
