"""Rows of several calls that are asked the same go through the head together."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from scoring_service.engine.events import CallEvent, ItemFailed, SampleSlice, ScoreSlice
from scoring_service.engine.loading.loader import LoadedModel
from scoring_service.engine.packed.steps import head_jobs
from scoring_service.types import Call, Processing, RowWants, SampleCall, ScoreCall
from tests.engine.driving import engine_of, finish
from tests.engine.mixed_settings import DRAWN, SCORED
from tests.engine.poison import poison_token
from tests.engine.sampling import task
from tests.engine.scoring import completion, group, groups

COLD, HOT = Processing(temperature=0.7, top_k=50), Processing(temperature=1.3, top_p=0.9)
FEW, MANY = RowWants(entropy=True, top_k=3), RowWants(rank=True, top_k=9)
POISON = 1999


def scores(call_id: int, wants: RowWants, processing: Processing, first: int = 7) -> ScoreCall:
    tokens = [100 * call_id % 1900 + i for i in range(6)]
    return ScoreCall(
        call_id, tuple(groups([([first, 8], [tokens, tokens[:2]])], processing)), wants
    )


def samples(call_id: int, processing: Processing, min_tokens: int = 0, top: int = 0) -> SampleCall:
    one = task([100 * call_id, 9], n=2, seed=call_id, max_tokens=6, min_tokens=min_tokens,
               processing=processing, ignore_eos=not min_tokens)  # fmt: skip
    return SampleCall(call_id, (one,), top)


CALLS: list[Call] = [
    scores(1, FEW, COLD),
    scores(2, FEW, COLD),
    scores(3, MANY, COLD),
    scores(4, FEW, HOT),
    scores(5, FEW, COLD),
    samples(6, COLD),
    samples(7, COLD),
    samples(8, HOT),
    samples(9, COLD, min_tokens=3),
    samples(10, COLD, top=4),
    samples(11, COLD),
    *(samples(12 + n, p, min_tokens=n % 2 * 3, top=n % 3 * 2) for n, p in enumerate(DRAWN)),
    *(scores(20 + n, MANY, processing) for n, processing in enumerate(SCORED)),
]


def of_calls(loaded: LoadedModel, calls: list[Call]) -> list[CallEvent]:
    engine = engine_of(loaded)
    for call in calls:
        engine.submit(call)
    return list(finish(engine))


def answers(events: list[CallEvent]) -> dict[tuple[int, ...], list[Any]]:
    """Every array of every slice, by call and item."""
    found: dict[tuple[int, ...], list[Any]] = {}
    for event in events:
        if isinstance(event, ScoreSlice):
            key = event.call_id, event.group_index, event.completion_index, event.start
            found[key] = [getattr(event.block, name) for name in event.block.__slots__]
        elif isinstance(event, SampleSlice):
            key = event.call_id, event.prompt_index, event.sample_index
            # Where a slice ends is decided by the clock, too.
            before = found.get(key, [[], []])
            arrays = zip(before, (event.token_ids, event.logprobs), strict=True)
            found[key] = [np.append(*pair).astype(pair[1].dtype) for pair in arrays]
    return found


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], list[int]]:
    """How many rows a function of the head got, each time."""

    def count(name: str) -> list[int]:
        heights: list[int] = []
        function = getattr(head_jobs, name)

        def told(first: Any, *others: Any) -> Any:
            heights.append(len(first.x_T_V) if name == "begin_rows" else len(first))
            return function(first, *others)

        monkeypatch.setattr(head_jobs, name, told)
        return heights

    return count


def test_samples_of_many_calls_are_drawn_at_once(
    tiny_packed: LoadedModel, counted: Callable[[str], list[int]]
) -> None:
    """Whatever their settings are, and whether they have lists."""
    heights = counted("begin_draw")
    of_calls(tiny_packed, [samples(n, DRAWN[n - 1], top=n % 2 * 5) for n in range(1, 9)])
    assert heights == [16] * 6


def test_rows_of_many_calls_are_computed_at_once(
    tiny_packed: LoadedModel, counted: Callable[[str], list[int]]
) -> None:
    """Whatever their settings are."""
    heights = counted("begin_rows")
    of_calls(tiny_packed, [scores(n, FEW, SCORED[n - 1]) for n in range(1, 9)])
    assert heights == [8 * (6 + 2)]


def test_bits_are_those_of_each_call_alone(tiny_packed: LoadedModel) -> None:
    together = answers(of_calls(tiny_packed, CALLS))
    alone = {
        key: found
        for call in CALLS
        for key, found in answers(of_calls(tiny_packed, [call])).items()
    }
    assert together.keys() == alone.keys()
    for key, arrays in alone.items():
        for mine, theirs in zip(together[key], arrays, strict=True):
            np.testing.assert_array_equal(mine, theirs)


def test_what_is_at_fault_ends_alone(
    tiny_packed: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    poison_token(tiny_packed, POISON, monkeypatch)
    guilty = ScoreCall(3, tuple(groups([([7, 8], [[POISON, 5, 6]])], COLD)), FEW)
    calls: list[Call] = [scores(1, FEW, COLD), guilty, scores(2, FEW, COLD)]
    events = of_calls(tiny_packed, calls)
    failed = [event for event in events if isinstance(event, ItemFailed)]
    assert [event.call_id for event in failed] == [3]
    assert {key[0] for key in answers(events)} >= {1, 2}


def from_second_row(call_id: int) -> ScoreCall:
    """All of its rows come from one segment: they are joined with nothing, which would copy."""
    tasks = [group([1, 2], [completion([3, 4, 5, 6], spans=((1, 3),))], COLD)]
    return ScoreCall(call_id, tuple(tasks), RowWants(rank=True, top_k=3))


def test_results_of_several_calls_share_no_memory(tiny_packed: LoadedModel) -> None:
    """One that a slow reader leaves lying would keep those of all others."""
    events = of_calls(tiny_packed, [from_second_row(1), from_second_row(2)])
    blocks = [event.block for event in events if isinstance(event, ScoreSlice)]
    assert len(blocks) == 2
    for array in (a for b in blocks for a in (b.logprobs, b.ranks, b.top_token_ids)):
        kept = array if array.base is None else array.base
        assert kept.nbytes == array.nbytes
