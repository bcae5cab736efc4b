"""What workloads cost at least, counted by hand."""

from __future__ import annotations

from benchmarks.limits import Shape, bytes_read, flops, least_seconds
from benchmarks.workloads import Mixed, Sampling, Scoring

SHAPE = Shape(hidden=8, layers=2, heads=4, kv_heads=2, head_dim=2, intermediate=16, vocab=32)
PARAMETERS = 2 * (8 * 8 + 2 * 8 * 4 + 8 * 8 + 3 * 8 * 16) + 8 * 32
"""q and o, k and v, the feed-forward layer of two layers; the head."""


def test_scoring_reads_the_weights_once() -> None:
    work = Scoring([([1, 2], [[3], [4, 5]])])
    assert SHAPE.weights == PARAMETERS
    assert bytes_read(SHAPE, work, 2) == 2 * PARAMETERS


def test_decoding_reads_what_it_keeps() -> None:
    """Of every position before a step's own, a key and a value in each layer and head."""
    work = Sampling([[1] * 5, [2] * 3], max_tokens=4)
    positions = 0
    for prompt in work.prompts:
        for drawn in range(1, work.max_tokens):  # the first comes of the prompt's own pass
            positions += len(prompt) + drawn - 1
    kept = positions * 2 * 2 * 2 * 2  # keys and values, layers, heads, numbers
    assert bytes_read(SHAPE, work, 2) == 2 * (work.max_tokens * PARAMETERS + kept)
    scoring = Scoring([([1, 2], [[3]])])
    both = bytes_read(SHAPE, Mixed(scoring, work), 2)
    assert both == bytes_read(SHAPE, scoring, 2) + bytes_read(SHAPE, work, 2)


def test_bytes_take_as_long_as_a_copy_that_moves_as_many() -> None:
    machine = {"matrix_flops_per_second": 100.0, "copy_bytes_per_second": 10.0}
    assert least_seconds(200, 10, machine) == 2.0
    assert least_seconds(200, 30, machine) == 3.0
    assert flops(SHAPE, Sampling([[1]], 1)) == 2 * PARAMETERS + 4 * 2 * 4 * 2
