"""What is left of a call after part of it was answered: nothing twice, nothing lost."""

from __future__ import annotations

import random

import numpy as np

from scoring_service.engine.events import ItemFailed, SampleSlice, ScoreSlice
from scoring_service.engine.outputs.row_slices import wanted_rows
from scoring_service.errors import Fault, Reason
from scoring_service.pool.streams.delivered import Delivered
from scoring_service.pool.streams.parts import MAX_SAMPLES_PER_PART, size_of, split
from scoring_service.types import (
    CompletionTask,
    GroupTask,
    Processing,
    RowBlock,
    RowWants,
    SampleCall,
    SamplingTask,
    ScoreCall,
)


def random_score_call(rng: random.Random) -> ScoreCall:
    next_token = rng.random() < 0.5
    groups = []
    for index in range(rng.randint(1, 5)):
        completions = []
        for place in range(rng.randint(1, 5)):
            length = rng.randint(1, 40)
            spans, start = [], 0
            while start < length:
                start += rng.randint(0, 5)
                count = min(rng.randint(1, 10), length - start)
                if count > 0:
                    spans.append((start, count))
                start += count + 1
            spans = spans or [(0, length)]
            rows = sum(n for _, n in spans) + next_token
            candidates = np.arange(rows * 3, dtype=np.int32).reshape(rows, 3)
            shape = rng.choice((None, candidates, candidates[:1]))
            ids = np.arange(length, dtype=np.int32)
            completions.append(CompletionTask(place * 2, ids, tuple(spans), shape))
        prompt = np.arange(rng.randint(1, 30), dtype=np.int32)
        groups.append(GroupTask(index * 3, prompt, tuple(completions), Processing(), 0))
    return ScoreCall(1, tuple(groups), RowWants(), next_token)


def rows_of(call: ScoreCall) -> dict[tuple[int, int], list[tuple[int, tuple[int, ...]]]]:
    """(group, completion) -> (row, its candidates) of everything that a call asks for."""
    found = {}
    for group in call.groups:
        for completion in group.completions:
            rows = wanted_rows(completion, call.next_token)
            given = completion.candidate_ids
            if given is None:
                ids = [()] * len(rows)
            else:
                ids = [tuple(i) for i in np.broadcast_to(given, (len(rows), 3)).tolist()]
            found[group.index, completion.index] = list(zip(rows.tolist(), ids, strict=True))
    return found


def score_slice(key: tuple[int, int], start: int, count: int, last: bool) -> ScoreSlice:
    block = RowBlock(count, np.zeros(count, dtype=np.float32))
    return ScoreSlice(1, *key, 0, 1, start, block, last, 0, 4 * count)


def test_rows_that_were_sent_are_left_out_and_no_others() -> None:
    rng = random.Random(3)
    for _ in range(300):
        call = random_score_call(rng)
        delivered = Delivered()
        expected = {}
        for key, rows in rows_of(call).items():
            sent = rng.choice((0, rng.randint(0, len(rows)), len(rows)))
            place = 0
            while place < sent:
                count = rng.randint(1, sent - place)
                last = place + count == len(rows)
                delivered.note(score_slice(key, rows[place][0], count, last))
                place += count
            if sent < len(rows):
                if rng.random() < 0.1:
                    fault = Fault(Reason.NON_FINITE_LOGITS, "")
                    delivered.note(ItemFailed(1, *key, fault))
                else:
                    expected[key] = rows[sent:]
        left = delivered.remainder(call)
        assert ({} if left is None else rows_of(left)) == expected


def test_samples_go_on_with_the_tokens_that_were_sent() -> None:
    rng = random.Random(4)
    for _ in range(200):
        tasks = tuple(
            SamplingTask(
                index, np.arange(3, dtype=np.int32), rng.randint(1, 9), 5, rng.choice((0, 7)),
                Processing(), 0, max_tokens=20,
            )
            for index in range(3)
        )  # fmt: skip
        delivered = Delivered()
        expected: dict[tuple[int, int], list[int]] = {}
        for task in tasks:
            for index in task.sample_indices:
                count = rng.randint(0, 20)
                tokens = [rng.randint(0, 99) for _ in range(count)]
                cut = rng.randint(0, count)
                for start, piece in ((0, tokens[:cut]), (cut, tokens[cut:])):
                    if piece:
                        last = start + len(piece) == 20
                        delivered.note(sample_slice(task, index, start, piece, last))
                if count < 20:
                    expected[task.index, index] = tokens
        left = delivered.remainder(SampleCall(1, tasks))
        found = {}
        if left is not None:
            assert isinstance(left, SampleCall)
            for task in left.prompts:
                for index in task.sample_indices:
                    assert (task.index, index) not in found, "asked for twice"
                    found[task.index, index] = task.drawn_before(index)
        assert found == expected
        assert delivered.usage.sampled_tokens == sum(
            len(ids) for pieces in delivered.tokens.values() for ids in pieces
        )


def sample_slice(
    task: SamplingTask, index: int, start: int, tokens: list[int], last: bool
) -> SampleSlice:
    ids = np.array(tokens, dtype=np.int32)
    numbers = np.zeros(len(ids), dtype=np.float32)
    return SampleSlice(
        1, task.index, index, 0, 3, task.seed, start, last, ids, numbers, numbers, None, None, "",
        "length" if last else None, None, 0, 12 * len(ids),
    )  # fmt: skip


def test_parts_hold_everything_once_in_order() -> None:
    rng = random.Random(5)
    for _ in range(200):
        call = random_score_call(rng)
        parts = split(call, rng.randint(1, 200))
        joined: dict = {}
        for part in parts:
            assert isinstance(part, ScoreCall)
            rows = rows_of(part)
            assert rows
            assert not joined.keys() & rows.keys()
            joined |= rows
        assert joined == rows_of(call)
        assert list(joined) == list(rows_of(call))
        assert sum(size_of(part).reply_bytes for part in parts) == size_of(call).reply_bytes


def test_many_samples_are_cut_into_parts_that_workers_can_share() -> None:
    prompt = np.arange(10, dtype=np.int32)
    task = SamplingTask(4, prompt, 100, 5, 7, Processing(), 0, max_tokens=20)
    parts = split(SampleCall(1, (task,)), 1000)
    assert [size_of(part).samples for part in parts] == [MAX_SAMPLES_PER_PART] * 3 + [4]
    indices = [i for part in parts for t in part.prompts for i in t.sample_indices]  # type: ignore[union-attr]
    assert indices == list(range(7, 107))
