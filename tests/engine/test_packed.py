"""Packed steps: the same numbers whatever meets in them, and a turn for every call."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from scoring_service.engine.events import CallFinished, ScoreSlice
from scoring_service.engine.loading.loader import LoadedModel
from scoring_service.types import RowWants, ScoreCall
from tests.engine.driving import engine_of, finish
from tests.engine.scoring import Group, groups
from tests.engine.seven_ways import (
    assert_close,
    assert_equal,
    load_small,
    sample,
    sample_call,
    score,
    score_call,
)


@pytest.mark.parametrize("name", ["llama", "gemma3", "mistral", "deepseek-v3", "gpt-oss"])
def test_another_chunk_size_is_the_same_within_rounding(name: str, tmp_path: Path) -> None:
    loaded = load_small(name, tmp_path, "float32")
    rng = np.random.default_rng(1)
    pairs: list[Group] = [
        (rng.integers(0, 97, 30).tolist(), [rng.integers(0, 97, n).tolist() for n in (25, 3)])
    ]
    small = score(engine_of(loaded, chunk_size=16), pairs)
    assert_close(score(engine_of(loaded, chunk_size=64), pairs), small)


def test_a_sample_is_the_same_in_any_company(tiny_packed: LoadedModel) -> None:
    prompts = [list(range(30)), list(range(50, 75)), [9]]
    together = sample(engine_of(tiny_packed), sample_call(prompts, n=3, max_tokens=40))
    alone = sample(engine_of(tiny_packed), sample_call(prompts[:1], n=3, max_tokens=40))
    for index in range(3):
        assert alone[0, index].bits == together[0, index].bits
    engine = engine_of(tiny_packed, max_batch_tokens=32)
    engine.submit(score_call([(list(range(500)), [list(range(300))])]))
    beside = sample(engine, sample_call(prompts[:1], n=3, max_tokens=40))
    for index in range(3):
        assert beside[0, index].bits == together[0, index].bits


def test_a_small_call_is_not_starved_by_a_large_one(tiny_packed: LoadedModel) -> None:
    engine = engine_of(tiny_packed, max_batch_tokens=128)
    rng = np.random.default_rng(0)
    large: list[Group] = [
        (rng.integers(0, 2048, 64).tolist(), [rng.integers(0, 2048, 64).tolist()])
        for _ in range(60)
    ]
    engine.submit(score_call(large))
    for _ in range(3):
        engine.step()
    engine.submit(score_call([([5], [[6, 7]])], call_id=2))
    events = [*engine.step(), *engine.step()]
    assert [e.call_id for e in events if isinstance(e, CallFinished)] == [2]
    engine.cancel(1)


def test_samples_do_not_keep_scoring_out(tiny_packed: LoadedModel) -> None:
    """Though there are more of them than a step has tokens."""
    engine = engine_of(tiny_packed, max_batch_tokens=8)
    engine.submit(sample_call([[5, 6]], n=12, max_tokens=200))
    for _ in range(20):
        engine.step()
    engine.submit(score_call([([7], [[8] * 100])], call_id=3, priority=1))
    steps = 0
    while not any(isinstance(e, CallFinished) for e in engine.step()):
        steps += 1
        assert steps < 10
    engine.cancel(2)
    assert engine.free_pages == 400


def test_rows_of_a_long_text_come_chunk_by_chunk(tiny_packed: LoadedModel) -> None:
    engine = engine_of(tiny_packed, max_batch_tokens=128)
    text = np.random.default_rng(0).integers(0, 2048, 1001).tolist()
    engine.submit(ScoreCall(1, tuple(groups([(text[:1], [text[1:]])])), RowWants()))
    seen = []
    steps = 0
    while engine.can_step:
        steps += 1
        seen += [(s.start, s.block.rows) for s in engine.step() if isinstance(s, ScoreSlice)]
    assert steps >= 8
    assert len(seen) >= 8
    assert [start for start, _ in seen] == np.cumsum([0, *(n for _, n in seen[:-1])]).tolist()
    assert sum(n for _, n in seen) == 1000


def test_everything_at_once(tiny_packed: LoadedModel) -> None:
    """Nothing is lost or doubled where scoring, sampling and cancelling meet."""
    engine = engine_of(tiny_packed, pages=80, max_batch_tokens=96)
    rng = np.random.default_rng(5)
    expected: dict[int, int] = {}
    rows: dict[int, int] = {}
    for call_id in range(10, 30):
        pairs: list[Group] = [
            (rng.integers(0, 50, 40).tolist(), [rng.integers(0, 50, n).tolist() for n in (5, 70)])
            for _ in range(2)
        ]
        engine.submit(score_call(pairs, call_id=call_id, priority=int(rng.integers(0, 2))))
        expected[call_id] = 2 * (6 + 71)
        if call_id % 3 == 0:
            engine.submit(sample_call([[call_id]], n=3, call_id=100 + call_id, max_tokens=30))
        if call_id % 5 == 0:
            engine.cancel(call_id - 1)
            expected.pop(call_id - 1, None)
            rows.pop(call_id - 1, None)
        for event in engine.step():
            if isinstance(event, ScoreSlice):
                engine.add_credit(event.call_id, event.size)
                rows[event.call_id] = rows.get(event.call_id, 0) + event.block.rows
    for event in finish(engine):
        if isinstance(event, ScoreSlice):
            rows[event.call_id] = rows.get(event.call_id, 0) + event.block.rows
    assert {c: n for c, n in rows.items() if c in expected} == expected
    assert engine.free_pages == 80


def test_ends_of_segments_are_copied_at_once_and_lie_apart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One launch a step on a GPU; and what is let go of leaves nothing behind with the others."""
    loaded = load_small("llama", tmp_path, "float32")
    rng = np.random.default_rng(4)
    pairs: list[Group] = [
        (rng.integers(0, 97, 40 + n).tolist(), [rng.integers(0, 97, 5).tolist()]) for n in range(5)
    ]
    expected = [score(engine_of(loaded), [pair]) for pair in pairs]
    copied: list[tuple[list[torch.Tensor], list[torch.Tensor]]] = []
    copy = torch._foreach_copy_

    def noting(copies: list[torch.Tensor], rows: list[torch.Tensor]) -> None:
        copy(copies, rows)
        copied.append((copies, rows))

    monkeypatch.setattr(torch, "_foreach_copy_", noting)
    engine = engine_of(loaded, max_batch_tokens=1024)
    found = score(engine, pairs)
    assert [len(copies) >= len(pairs) for copies, _ in copied] == [True]
    for end, row in zip(*copied[0], strict=True):
        assert torch.equal(end, row)
        assert end.untyped_storage().nbytes() == end.numel() * end.element_size()
    # From the cache, where rows stand on these states.
    again = score(engine, pairs)
    for index, alone in enumerate(expected):
        assert_equal({(0, 0): found[index, 0]}, alone)
        assert_equal({(0, 0): again[index, 0]}, alone)
