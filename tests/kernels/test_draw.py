"""One draw at a time: the argmin of E / p, its inputs, and independence of the batch."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy import stats

from scoring_service.kernels import reference
from tests.kernels import cases, oracle
from tests.kernels.checks import assert_alone_as_in_batch


@pytest.mark.parametrize("block", range(6))
def test_the_drawn_token_is_the_argmin(block: int) -> None:
    """Against a race run in Python over processed probabilities, for every kind of row."""
    rng = np.random.default_rng(block)
    for _ in range(25):
        vocab = int(rng.choice([1, 2, 5, 33, 130]))
        setting = cases.random_setting(rng, vocab)
        x_V = oracle.scaled(cases.random_row(rng, vocab), setting.temperature)
        keep_V = oracle.support(x_V, **setting.truncation)
        seed = int(rng.integers(0, 2**64, dtype=np.uint64))
        index, position = (int(n) for n in rng.integers(0, 2**32, size=2))
        keys = oracle.race(x_V, keep_V, seed, index, position)
        first, second = (*sorted(keys), math.inf)[:2]
        assert second - first > 1e-9, "a case too close to call: choose another seed"
        drawn = reference.draw(
            torch.from_numpy(x_V)[None], torch.from_numpy(keep_V)[None], [seed], [index], [position]
        )
        assert drawn.tolist() == [keys.index(first)]


@pytest.mark.parametrize(
    ("words", "level"),
    [
        # u = (r + 1/2) / 2**32: the words 0 and 1 are as 1 to 3, and E = u where u is small.
        ((0, 1), math.log(3)),
        # The greatest word still has a finite E, 33 log 2; 2**31 has log 2 (and 3e-10).
        ((2**31, 2**32 - 1), math.log(33)),
        ((0, 2**32 - 1), math.log(33 * math.log(2) * 2**33)),
        ((2**20, 2**31), math.log(math.log(2) / -math.log1p(-(2**20 + 0.5) / 2**32))),
    ],
)
def test_uniform_and_exponential_at_the_ends(
    monkeypatch: pytest.MonkeyPatch, words: tuple[int, int], level: float
) -> None:
    """Two tokens with given words: the second wins as soon as its x leads by log(E1 / E0)."""
    row = torch.tensor([words], dtype=torch.int64)
    monkeypatch.setattr(reference, "token_words", lambda *_args, **_kwargs: row)
    for lead, winner in ((level - 1e-5, 0), (level + 1e-5, 1)):
        x = torch.tensor([[0.0, lead]])
        drawn = reference.draw(x, reference.support(x), [0], [0], [0])
        assert drawn.tolist() == [winner]


def test_same_token_alone_and_in_any_batch() -> None:
    assert_alone_as_in_batch(reference.draw)


def test_a_longer_vocabulary_of_banned_tokens_changes_nothing() -> None:
    """Rows of a padded head: the words of an id do not depend on how many ids there are."""
    rng = np.random.default_rng(2)
    x = torch.from_numpy(rng.normal(size=(64, 50)).astype(np.float32))
    padded = torch.cat([x, torch.full((64, 13), -math.inf)], dim=1)
    inputs = ([5] * 64, list(range(64)), [9] * 64)
    short = reference.draw(x, reference.support(x), *inputs)
    assert torch.equal(short, reference.draw(padded, reference.support(padded), *inputs))


def test_shifted_logits_draw_the_same() -> None:
    """p may be any multiple of the probability: an exact offset of a row changes no draw."""
    rng = np.random.default_rng(3)
    x = torch.from_numpy(np.round(rng.normal(size=(200, 40)) * 64).astype(np.float32) / 64)
    inputs = ([1] * 200, [0] * 200, list(range(200)))
    plain = reference.draw(x, reference.support(x), *inputs)
    assert torch.equal(plain, reference.draw(x - 128, reference.support(x), *inputs))


@pytest.mark.parametrize("varies", ["seed", "sample_index", "position"])
@pytest.mark.parametrize("step", [1, 2**16, 2**31])
def test_other_inputs_draw_independently(varies: str, step: int) -> None:
    """Tokens drawn at n and at n + step form a contingency table without structure."""
    count = 20_000
    x = torch.zeros(count, 4)

    def drawn(offset: int) -> np.ndarray:
        inputs = {"seed": [2**63] * count, "sample_index": [0] * count, "position": [0] * count}
        inputs[varies] = [n + offset for n in range(count)]
        tokens = reference.draw(
            x, reference.support(x), inputs["seed"], inputs["sample_index"], inputs["position"]
        )
        return tokens.numpy()

    table = np.zeros((4, 4))
    np.add.at(table, (drawn(0), drawn(step)), 1)
    assert table.min() > 0
    assert stats.chi2_contingency(table).pvalue >= 1e-4


def test_the_upper_half_of_the_seed_counts() -> None:
    x = torch.zeros(1, 1000)
    keep = reference.support(x)
    seeds = [7, 7 + 2**32, 7 + 2**63]
    assert len({reference.draw(x, keep, [seed], [0], [0]).item() for seed in seeds}) == 3


def test_the_least_likely_tokens_neither_overflow_nor_win() -> None:
    """x spread over 2,000 nats: no NaN in the race, and the best token takes it."""
    x = torch.linspace(-1000, 1000, 101).expand(500, -1)
    drawn = reference.draw(x, reference.support(x), [3] * 500, [0] * 500, list(range(500)))
    assert drawn.tolist() == [100] * 500
