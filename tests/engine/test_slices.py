"""Answers come in slices of bounded size that join to the whole."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from scoring_service.engine.loading.loader import LoadedModel
from scoring_service.engine.outputs.row_slices import contiguous_runs, slice_runs
from scoring_service.types import RowBlock, RowWants
from tests.engine.scoring import (
    EVERYTHING,
    NUMBERS,
    Scored,
    assert_same_bits,
    completion,
    group,
    score,
)

RNG = np.random.default_rng(9)
PROMPT = RNG.integers(0, 2048, size=5).tolist()
IDS = RNG.integers(0, 2048, size=300).tolist()


def block(first: int, rows: int) -> RowBlock:
    """Rows that carry their own index in two arrays of different width."""
    indices = np.arange(first, first + rows)
    return RowBlock(
        rows=rows,
        logprobs=indices.astype(np.float32),
        top_token_ids=np.stack([indices, -indices], axis=1).astype(np.int32),
    )


ascending = st.sets(st.integers(0, 60), min_size=1).map(sorted)


@given(rows=ascending)
def test_contiguous_runs(rows: list[int]) -> None:
    """The fewest runs of consecutive rows that hold all rows, in order."""
    whole = block(0, 61)
    picked = RowBlock(
        rows=len(rows), logprobs=whole.logprobs[rows], top_token_ids=whole.top_token_ids[rows]
    )
    runs = list(contiguous_runs(np.array(rows, dtype=np.int32), picked))
    found = []
    for first, run in runs:
        expected = block(first, run.rows)
        assert (run.logprobs == expected.logprobs).all()
        assert (run.top_token_ids == expected.top_token_ids).all()
        found.extend(range(first, first + run.rows))
    assert found == rows
    assert len(runs) == 1 + sum(right != left + 1 for left, right in pairwise(rows))


@given(rows=ascending, cuts=st.sets(st.integers(1, 60)), limit=st.integers(1, 70))
def test_slice_runs(rows: list[int], cuts: set[int], limit: int) -> None:
    """Whatever runs come in, slices are contiguous, at most `limit` long, and as few as may be."""
    runs: list[list[int]] = []
    for row in rows:
        if runs and row == runs[-1][-1] + 1 and row not in cuts:
            runs[-1].append(row)
        else:
            runs.append([row])
    slices = list(slice_runs(((run[0], block(run[0], len(run))) for run in runs), limit))
    found = []
    for first, piece in slices:
        expected = block(first, piece.rows)
        assert 1 <= piece.rows <= limit
        assert (piece.logprobs == expected.logprobs).all()
        assert (piece.top_token_ids == expected.top_token_ids).all()
        found.extend(range(first, first + piece.rows))
    assert found == rows
    for (first, piece), (following, _) in pairwise(slices):
        assert piece.rows == limit or following != first + piece.rows


def check_slices(scored: Scored, prompt_length: int) -> None:
    """Ascending, contiguous, told apart by `start`, and ended by `last` once."""
    assert [s.last for s in scored.slices] == [False] * (len(scored.slices) - 1) + [True]
    for left, right in pairwise(scored.slices):
        assert right.start >= left.start + left.block.rows
    for piece in scored.slices:
        assert piece.prompt_length == prompt_length
        assert piece.block.rows >= 1
        arrays = [getattr(piece.block, name) for name in ("entropies", "top_logprobs", "ranks")]
        assert piece.size >= sum(array.nbytes for array in arrays)


@pytest.mark.parametrize("slice_bytes", [1, 300, 2_000, 20_000, 1 << 20])
@pytest.mark.parametrize("spans", [None, ((0, 1), (3, 40), (43, 50), (200, 100))])
def test_slices_join_to_the_whole(
    tiny: LoadedModel, slice_bytes: int, spans: tuple[tuple[int, int], ...] | None
) -> None:
    candidates = np.arange(10, dtype=np.int32)[None]
    tasks = [group(PROMPT, [completion(IDS, spans, candidates)])]
    whole = score(tiny, tasks, EVERYTHING, next_token=True)[0, 0]
    found = score(tiny, tasks, EVERYTHING, next_token=True, slice_bytes=slice_bytes)[0, 0]
    check_slices(whole, len(PROMPT))
    check_slices(found, len(PROMPT))
    assert found.row_indices == whole.row_indices
    assert_same_bits(found, whole)
    assert all(s.size <= slice_bytes or s.block.rows == 1 for s in found.slices)
    if slice_bytes == 1:
        assert len(found.slices) == len(found.row_indices)


WANTS = [
    RowWants(),
    RowWants(rank=True),
    RowWants(top_k=3),
    RowWants(processed_logprobs=True, log_kept_mass=True, support_size=True),
    EVERYTHING,
]


@pytest.mark.parametrize("wants", WANTS)
@pytest.mark.parametrize("model", ["tiny_packed", "tiny_plain"])
@pytest.mark.parametrize("candidates", [0, 7])
def test_rows_are_as_large_as_they_were_counted(
    model: str, wants: RowWants, candidates: int, request: pytest.FixtureRequest
) -> None:
    """What admission, credit and slices count is what is sent, to the byte."""
    asked = np.arange(candidates, dtype=np.int32)[None] if candidates else None
    tasks = [group(PROMPT, [completion(IDS[:20], candidates=asked)])]
    scored = score(request.getfixturevalue(model), tasks, wants)[0, 0]
    arrays = [getattr(scored, name) for name in NUMBERS if scored.has(name)]
    assert sum(array.nbytes for array in arrays) == 20 * wants.row_bytes(candidates)
    assert sum(piece.size for piece in scored.slices) == 20 * wants.row_bytes(candidates)


def test_slices_do_not_cross_gaps(tiny: LoadedModel) -> None:
    """Spans that touch are one run; a row left out ends a slice, however large slices may be."""
    spans = ((0, 10), (10, 5), (16, 4), (290, 10))
    found = score(tiny, [group(PROMPT, [completion(IDS, spans)])], next_token=True)[0, 0]
    ends = [(s.start, s.start + s.block.rows) for s in found.slices]
    assert ends == [(0, 15), (16, 20), (290, 301)]


def test_each_completion_ends_once(tiny: LoadedModel) -> None:
    parts = [completion(IDS[: n + 1], index=n) for n in range(5)]
    answer = score(tiny, [group(PROMPT, parts)], RowWants(top_k=500), slice_bytes=9_000)
    for n in range(5):
        assert [s.last for s in answer[0, n].slices].count(True) == 1
        assert answer[0, n].row_indices == list(range(n + 1))


def test_a_large_k_over_a_long_sequence(tiny: LoadedModel) -> None:
    """No slice holds more than asked for: 300 rows at K = 2,048 are 4.9 MB in slices of 512 KiB."""
    limit = 1 << 19
    tasks = [group(PROMPT, [completion(IDS)])]
    found = score(tiny, tasks, RowWants(top_k=2048), slice_bytes=limit)[0, 0]
    assert sum(s.size for s in found.slices) > 8 * limit
    assert max(s.size for s in found.slices) <= limit
    assert len(found.slices) <= 11
