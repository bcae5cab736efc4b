"""Philox4x32-10 against Random123's known answers and an independent integer implementation."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from scoring_service.kernels.philox import philox4x32, token_words
from tests.kernels import oracle

CPU = torch.device("cpu")
ONES = 0xFFFFFFFF

# Random123, tests/kat_vectors, lines "philox4x32 10": counter, key, answer.
KNOWN_ANSWERS = [
    (
        (0, 0, 0, 0),
        (0, 0),
        (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8),
    ),
    (
        (ONES, ONES, ONES, ONES),
        (ONES, ONES),
        (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD),
    ),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
]

UINT32 = st.integers(0, 2**32 - 1)


def tensors(words: tuple[int, ...]) -> tuple[torch.Tensor, ...]:
    return tuple(torch.tensor([word], dtype=torch.int64) for word in words)


@pytest.mark.parametrize(("counter", "key", "answer"), KNOWN_ANSWERS)
def test_known_answers(
    counter: tuple[int, ...], key: tuple[int, ...], answer: tuple[int, ...]
) -> None:
    assert oracle.philox4x32(counter, key) == answer
    got = philox4x32(tensors(counter), tensors(key))  # type: ignore[arg-type]
    assert tuple(int(word) for word in got) == answer


@given(counter=st.tuples(UINT32, UINT32, UINT32, UINT32), key=st.tuples(UINT32, UINT32))
@settings(max_examples=200)
def test_any_block(counter: tuple[int, ...], key: tuple[int, ...]) -> None:
    got = philox4x32(tensors(counter), tensors(key))  # type: ignore[arg-type]
    assert tuple(int(word) for word in got) == oracle.philox4x32(counter, key)


@given(
    rows=st.lists(
        st.tuples(st.integers(0, 2**64 - 1) | st.integers(2**63, 2**64 - 1), UINT32, UINT32),
        min_size=1,
        max_size=4,
    ),
    vocab=st.integers(1, 23),
)
@settings(max_examples=100)
def test_token_words(rows: list[tuple[int, int, int]], vocab: int) -> None:
    """Every word of every row for 64-bit seeds and odd vocabularies."""
    seeds, indices, positions = (list(column) for column in zip(*rows, strict=True))
    got = token_words(seeds, indices, positions, vocab, CPU)
    assert got.shape == (len(rows), vocab)
    assert got.tolist() == [
        [oracle.token_word(*row, token_id) for token_id in range(vocab)] for row in rows
    ]


def test_words_of_high_token_ids() -> None:
    """The last ids of a real, odd vocabulary: counter id >> 2, word id & 3."""
    vocab = 151_935
    got = token_words([2**64 - 5], [2], [4095], vocab, CPU)[0]
    for token_id in (0, 1, 2, 3, 4, 65_535, 65_536, 151_931, 151_932, 151_933, 151_934):
        assert int(got[token_id]) == oracle.token_word(2**64 - 5, 2, 4095, token_id)


def test_a_smaller_vocabulary_has_the_same_words() -> None:
    wide = token_words([12, 13], [0, 1], [5, 6], 1000, CPU)
    for vocab in (1, 2, 3, 997):
        assert torch.equal(token_words([12, 13], [0, 1], [5, 6], vocab, CPU), wide[:, :vocab])


@pytest.mark.parametrize("varies", ["seed", "sample_index", "position"])
def test_neighbouring_streams_are_uncorrelated(varies: str) -> None:
    """Words of one token at n and n + 1: uniform, and no correlation beyond 4.5 sigma of chance."""
    count = 40_000
    inputs = {"seed": [99] * count, "sample_index": [0] * count, "position": [50] * count}
    inputs[varies] = list(range(count))
    words = token_words(inputs["seed"], inputs["sample_index"], inputs["position"], 8, CPU)
    uniform = (words.numpy() + 0.5) / 2**32
    assert stats.kstest(uniform[:, 5], "uniform").pvalue >= 1e-4
    neighbours = np.corrcoef(uniform[:-1, 5], uniform[1:, 5])[0, 1]
    tokens = np.corrcoef(uniform[:, 4], uniform[:, 5])[0, 1]
    assert max(abs(neighbours), abs(tokens)) <= 4.5 / np.sqrt(count)
