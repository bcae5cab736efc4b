"""The packed engine: prompts computed once, memory in bounds, calls that meet in a step."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from scoring_service.engine.attention import attention
from scoring_service.engine.attention.packing import Packing
from scoring_service.engine.attention.runs import tables
from scoring_service.engine.attention.segments import DecodeToken
from scoring_service.engine.events import (
    CallEvent,
    CallFailed,
    CallFinished,
    ScoreSlice,
)
from scoring_service.engine.loading.loader import LoadedModel
from scoring_service.engine.packed.calls.sample_run import SampleRun
from scoring_service.engine.packed.calls.score_run import CompletionRun
from scoring_service.engine.runner import INITIAL_CREDIT
from scoring_service.errors import Reason
from scoring_service.types import (
    CompletionTask,
    GroupTask,
    RowWants,
    ScoreCall,
    Usage,
)
from tests.engine.driving import engine_of, finish
from tests.engine.scoring import Group, groups
from tests.engine.seven_ways import (
    CHUNK,
    assert_close,
    assert_equal,
    collect,
    load_small,
    sample,
    sample_call,
    samples_of,
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


def usage_of(events: list[CallEvent], call_id: int) -> Usage:
    (found,) = [e.usage for e in events if isinstance(e, CallFinished) and e.call_id == call_id]
    return found


def test_a_prompt_is_computed_once_for_everything(tiny_packed: LoadedModel) -> None:
    """For all of its completions, for all of its samples, and for calls to come."""
    engine = engine_of(tiny_packed)
    prompt = list(range(100, 230))
    engine.submit(score_call([(prompt, [[1, 2], [3], [4, 5, 6]])]))
    usage = usage_of(list(finish(engine)), 1)
    assert (usage.prompt_tokens, usage.cached_tokens) == (130, 0)
    assert usage.computed_tokens == 130 + 6
    engine.submit(sample_call([prompt], n=5, max_tokens=4))
    usage = usage_of(list(finish(engine)), 2)
    assert (usage.prompt_tokens, usage.cached_tokens) == (130, 130)
    assert usage.computed_tokens == 5 * 3, "the last token of a sample is not fed"
    longer = [*prompt, 7, 8]
    engine.submit(score_call([(longer, [[9]])]))
    usage = usage_of(list(finish(engine)), 1)
    assert usage.cached_tokens == 128, "a hit ends on a seam"
    assert engine.cache.hit_tokens == 130 + 128


def test_salts_do_not_share_prompts(tiny_packed: LoadedModel) -> None:
    engine = engine_of(tiny_packed)
    for salt in ("a", "b"):
        engine.submit(score_call([(list(range(70)), [[1]])], cache_salt=salt))
        assert usage_of(list(finish(engine)), 1).cached_tokens == 0


def test_an_uncached_call_neither_finds_nor_leaves_a_prompt(tiny_packed: LoadedModel) -> None:
    engine = engine_of(tiny_packed)
    prompt = list(range(130))
    pages = engine.free_pages
    engine.submit(score_call([(prompt, [[1, 2], [3]])], uncached=True))
    alone = list(finish(engine))
    assert usage_of(alone, 1).computed_tokens == 130 + 3, "its completions share their prompt"
    assert engine._store._pool.free == pages, "kept for nobody, not even until it is wanted"
    engine.submit(score_call([(prompt, [[1, 2], [3]])]))
    kept = list(finish(engine))
    assert usage_of(kept, 1).cached_tokens == 0
    engine.submit(score_call([(prompt, [[1, 2], [3]])], uncached=True))
    again = list(finish(engine))
    assert usage_of(again, 1).cached_tokens == 0
    assert engine.cache.looked_up_tokens == 130
    assert_equal(collect(iter(alone)), collect(iter(kept)))
    assert_equal(collect(iter(again)), collect(iter(kept)))


def test_two_calls_of_one_prompt_at_once_compute_it_once(tiny_packed: LoadedModel) -> None:
    engine = engine_of(tiny_packed)
    prompt = list(range(200))
    for call_id in (1, 2):
        engine.submit(score_call([(prompt, [[1, 2]])], call_id=call_id))
    events = list(finish(engine))
    computed = [usage_of(events, call_id).computed_tokens for call_id in (1, 2)]
    assert sum(computed) == 200 + 2 * 2


@pytest.mark.parametrize("pages", [19, 23, 40])
def test_samples_give_way_and_come_back(tiny_packed: LoadedModel, pages: int) -> None:
    """With too few pages, the youngest samples stop and are resumed: same tokens, same bits."""
    prompts = [list(range(30)), list(range(50, 75))]
    expected = sample(engine_of(tiny_packed), sample_call(prompts, n=5, max_tokens=60))
    engine = engine_of(tiny_packed, pages=pages)
    call = sample_call(prompts, n=5, max_tokens=60)
    engine.submit(call)
    found = samples_of(finish(engine), 2)
    assert set(found) == set(expected)
    for key in expected:
        assert found[key].bits == expected[key].bits
    assert engine.free_pages == pages


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


def test_groups_wait_for_room_and_all_are_answered(tiny_packed: LoadedModel) -> None:
    """More prompts, and longer completions, than pages hold at once."""
    rng = np.random.default_rng(0)
    pairs: list[Group] = [
        (rng.integers(0, 2048, 90).tolist(), [rng.integers(0, 2048, 150).tolist()] * 2)
        for _ in range(6)
    ]
    engine = engine_of(tiny_packed, pages=20)
    found = score(engine, pairs)
    assert_equal(found, score(engine_of(tiny_packed), pairs))
    assert engine.free_pages == 20


def test_cancelling_frees_everything_within_a_step(tiny_packed: LoadedModel) -> None:
    engine = engine_of(tiny_packed, pages=60)
    engine.submit(score_call([(list(range(300)), [list(range(200))] * 3)]))
    engine.submit(sample_call([list(range(40))], n=8, max_tokens=500))
    for _ in range(4):
        engine.step()
    assert engine.free_pages < 60
    engine.cancel(1)
    engine.cancel(2)
    assert engine.free_pages == 60
    assert not engine.can_step


def test_a_call_without_credit_waits_and_others_go_on(tiny_packed: LoadedModel) -> None:
    engine = engine_of(tiny_packed)
    wants = RowWants(top_k=2048)
    hungry = ScoreCall(1, tuple(groups([([1], [list(range(1500))])])), wants)
    engine.submit(hungry)
    taken = 0
    while engine.can_step:
        taken += sum(e.size for e in engine.step() if isinstance(e, ScoreSlice))
    assert 6 << 20 < taken < 10 << 20, "a credit of 8 MiB, and a step's worth at most"
    engine.submit(score_call([([5], [[6, 7]])], call_id=2))
    others = [e for e in engine.step() if isinstance(e, CallFinished)]
    assert [e.call_id for e in others] == [2]
    engine.add_credit(1, taken)
    assert engine.can_step


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


def test_a_call_that_waits_for_pages_gets_them_as_samples_end(tiny_packed: LoadedModel) -> None:
    """Though many more are to be drawn, for which pages are never enough."""
    engine = engine_of(tiny_packed, pages=40)
    engine.submit(sample_call([[5] * 16], n=100, max_tokens=30))
    for _ in range(40):
        engine.step()
    assert engine.free_pages < 12
    engine.submit(score_call([([7] * 160, [[8] * 20])], call_id=3))
    steps = 0
    while not any(isinstance(e, CallFinished) for e in engine.step()):
        steps += 1
        assert steps < 60
    events = list(finish(engine))
    assert [e.call_id for e in events if isinstance(e, CallFinished)] == [2]
    assert engine.free_pages == 40


def test_room_that_a_call_leaves_is_offered_to_those_that_asked_before(
    tiny_packed: LoadedModel,
) -> None:
    """Beside a call whose reader took nothing: without another command nobody would look again."""
    engine = engine_of(tiny_packed, pages=24, chunk_size=16, max_batch_tokens=97)
    engine.submit(sample_call([[5] * 112], n=1, max_tokens=50))
    for _ in range(4):
        engine.step()
    engine.add_credit(2, -INITIAL_CREDIT)
    engine.submit(score_call([([6] * 96, [[6]]), ([7] * 224, [[6]])], call_id=3))
    engine.submit(score_call([([8] * 128, [[6]])], call_id=4))
    events = []
    while engine.can_step:
        events += engine.step()
    assert [e.call_id for e in events if isinstance(e, CallFinished)] == [4]
    assert {e.call_id for e in events if isinstance(e, ScoreSlice)} == {3, 4}
    engine.add_credit(2, INITIAL_CREDIT)
    events = list(finish(engine))
    assert {e.call_id for e in events if isinstance(e, CallFinished)} == {2, 3}


def test_a_deadline_that_passed_costs_nothing(tiny_packed: LoadedModel) -> None:
    engine = engine_of(tiny_packed)
    engine.submit(score_call([([5], [[6, 7]])], deadline=0.0))
    (failed,) = engine.step()
    assert isinstance(failed, CallFailed)
    assert failed.fault.reason == "DEADLINE_EXCEEDED"
    assert not engine.can_step


def test_a_bug_while_planning_ends_one_call(
    tiny_packed: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Found when some of its completions are begun already, while other calls are under way."""
    engine = engine_of(tiny_packed)
    logged: list[int] = []
    engine._log_bug = lambda call, _: logged.append(call.call_id)
    begin = CompletionRun.begin

    def broken(
        call: ScoreCall, group: GroupTask, task: CompletionTask, *rest: Any
    ) -> CompletionRun:
        if call.call_id == 2 and (group.index, task.index) == (2, 1):
            raise ZeroDivisionError
        return begin(call, group, task, *rest)

    monkeypatch.setattr(CompletionRun, "begin", broken)
    pairs: list[Group] = [([5, 6, 7] * 20, [[6, 7] * 20, [8]]) for _ in range(3)]
    engine.submit(score_call(pairs))
    engine.submit(score_call(pairs, call_id=2))
    engine.submit(sample_call([[3, 4]], call_id=3, max_tokens=5))
    events = list(finish(engine))
    (failed,) = (e for e in events if isinstance(e, CallFailed))
    assert (failed.call_id, failed.fault.reason) == (2, "INTERNAL_ERROR")
    assert logged == [2]
    assert {e.call_id for e in events if isinstance(e, CallFinished)} == {1, 3}
    assert engine.free_pages == 400


def test_a_bug_in_going_on_with_a_sample_ends_one_call(
    tiny_packed: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its other samples are in the same step already."""
    engine = engine_of(tiny_packed)
    logged: list[int] = []
    engine._log_bug = lambda call, _: logged.append(call.call_id)
    decode_tokens = SampleRun.decode_tokens

    def broken(run: SampleRun, limit: int) -> list[DecodeToken]:
        if run.call.call_id == 2 and run.index == 1 and len(run.token_ids) == 3:
            raise ZeroDivisionError
        return decode_tokens(run, limit)

    monkeypatch.setattr(SampleRun, "decode_tokens", broken)
    engine.submit(sample_call([[3, 4]], n=3, max_tokens=6))
    engine.submit(sample_call([[3, 4]], call_id=3, max_tokens=6))
    events = list(finish(engine))
    assert [e.call_id for e in events if isinstance(e, CallFailed)] == logged == [2]
    assert [e.call_id for e in events if isinstance(e, CallFinished)] == [3]
    assert engine.free_pages == 400


def test_want_of_memory_in_a_step_is_put_down_to_no_call_until_calls_are_alone(
    tiny_packed: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = engine_of(tiny_packed)

    def full(*_: Any) -> Any:
        raise MemoryError

    monkeypatch.setattr(engine._model, "packed_states", full)
    for calls in (1, 2):
        for call_id in range(calls):
            engine.submit(score_call([([5, 6], [[7]])], call_id=call_id))
        failed = [e for e in finish(engine) if isinstance(e, CallFailed)]
        assert [e.fault.reason for e in failed] == [Reason.OUT_OF_MEMORY] * calls
        assert {e.shared_step for e in failed} == {calls > 1}
    assert not engine.is_sound


@pytest.mark.parametrize("lost", [False, True])
def test_a_lost_gpu_ends_the_worker_and_a_bug_does_not(
    tiny_packed: LoadedModel, monkeypatch: pytest.MonkeyPatch, lost: bool
) -> None:
    engine = engine_of(tiny_packed)
    engine._log_bug = lambda _call, _error: None

    def fail(*_: Any) -> Any:
        raise RuntimeError("Triton Error [CUDA]: an illegal memory access was encountered")

    monkeypatch.setattr(engine._model, "packed_states", fail)
    monkeypatch.setattr("scoring_service.engine.packed.engine.is_lost", lambda _device: lost)
    engine.submit(score_call([([5, 6], [[7]])]))
    assert [type(event) for event in finish(engine)] == [CallFailed]
    assert engine.is_sound != lost


def test_a_short_completion_leaves_the_rest_of_the_promise_to_a_longer_one(
    tiny_packed: LoadedModel,
) -> None:
    """What a group was promised for its longest completion is nobody else's meanwhile."""
    engine = engine_of(tiny_packed, pages=12, max_batch_tokens=16, chunk_size=16)
    first: list[Group] = [([5] * 16, [[6, 7] * 15, [7, 8, 9] * 37])]
    second: list[Group] = [([8] * 16, [[9, 6] * 63])]
    engine.submit(score_call(first))
    events = list(engine.step())
    engine.submit(score_call(second, call_id=2))
    events += finish(engine)
    assert {e.call_id for e in events if isinstance(e, CallFinished)} == {1, 2}
    found = collect(e for e in events if isinstance(e, ScoreSlice) and e.call_id == 1)
    assert_equal(found, score(engine_of(tiny_packed, chunk_size=16), first))
    engine.flush_cache()
    assert engine.free_pages == 12


def test_a_bug_in_a_step_leaves_open_whose_it_is_until_calls_are_alone(
    tiny_packed: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = engine_of(tiny_packed)
    engine._log_bug = lambda _call, _error: None
    model = engine._model
    states = model.packed_states
    steps: list[list[int]] = []

    def broken(ids_T: torch.Tensor, *rest: Any) -> Any:
        steps.append(ids_T.tolist())
        if 13 in steps[-1]:
            raise ZeroDivisionError
        return states(ids_T, *rest)

    pairs: list[Group] = [([5, 6, 7] * 20, [[6, 7] * 20])]
    expected = score(engine_of(tiny_packed), pairs)
    monkeypatch.setattr(model, "packed_states", broken)
    guilty = score_call([([13, 14], [[15]])], call_id=2)
    engine.submit(score_call(pairs))
    engine.submit(guilty)
    failed = {e.call_id: e.shared_step for e in finish(engine) if isinstance(e, CallFailed)}
    assert failed == {1: True, 2: True}
    steps.clear()
    engine.submit(score_call(pairs), alone=True)
    engine.submit(guilty, alone=True)
    engine.submit(sample_call([[3, 4]], call_id=3, max_tokens=5))
    events = list(finish(engine))
    failed = {e.call_id: e.shared_step for e in events if isinstance(e, CallFailed)}
    assert failed == {2: False}
    assert_equal(collect(e for e in events if not isinstance(e, CallFailed)), expected)
    assert {e.call_id for e in events if isinstance(e, CallFinished)} == {1, 3}
    assert not any({3, 5} <= set(step) or {13, 5} <= set(step) for step in steps)
    assert engine.free_pages == 400


def test_a_high_priority_call_gets_the_pages_first(tiny_packed: LoadedModel) -> None:
    """Submitted later, it begins before the others, which fill the pages."""
    engine = engine_of(tiny_packed, pages=10)
    rng = np.random.default_rng(0)
    for call_id in (1, 2, 3):
        pairs: list[Group] = [(rng.integers(0, 2048, 100).tolist(), [[6]])]
        engine.submit(score_call(pairs, call_id=call_id, priority=call_id))
    finished = [e.call_id for e in finish(engine) if isinstance(e, CallFinished)]
    assert finished == [3, 2, 1]


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


SABOTAGE = {
    "scaling": ("llama", {"scaling": lambda value: value * 1.2}),
    "window": ("gemma3", {"window": lambda _: None}),
    "softcap": ("gemma2", {"softcap": lambda _: None}),
    "sinks": ("gpt-oss", {"sinks": lambda _: None}),
}


@pytest.mark.parametrize("cpu_kernels", ["auto", "off"])
@pytest.mark.parametrize("part", SABOTAGE)
def test_the_probe_notices_what_is_dropped(
    part: str, cpu_kernels: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name, changes = SABOTAGE[part]
    assert load_small(name, tmp_path, "float32", cpu_kernels).info.packed
    layer = attention._Layer

    def sabotaged(**asked: Any) -> Any:
        return layer(**{key: changes.get(key, lambda v: v)(value) for key, value in asked.items()})

    monkeypatch.setattr(attention, "_Layer", sabotaged)
    for dtype in ("float32", "bfloat16"):
        info = load_small(name, tmp_path, dtype, cpu_kernels).info
        assert not info.packed
        assert "attention" in info.path_reason


@pytest.mark.parametrize("name", ["llama", "gemma3"])
def test_the_probe_notices_lost_segmentation(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A query that sees later tokens, and a segment that forgets what it continues."""
    mask = Packing.mask

    def open_mask(packing: Packing, *asked: Any) -> torch.Tensor:
        return torch.zeros_like(mask(packing, *asked))

    monkeypatch.setattr(Packing, "mask", open_mask)
    assert not load_small(name, tmp_path, "float32", cpu_kernels="off").info.packed


@pytest.mark.parametrize("name", ["llama", "gemma3"])
def test_the_probe_notices_a_wrong_chain(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A kernel that takes the keys of a chain's second segment from its first."""

    def confused(*arguments: Any) -> tuple[torch.Tensor, torch.Tensor]:
        nodes, runs = tables(*arguments)
        runs[:, 1] = torch.where((runs[:, 0] == 0) & (runs[:, 2] == CHUNK), 0, runs[:, 1])
        return nodes, runs

    monkeypatch.setattr(attention, "tables", confused)
    info = load_small(name, tmp_path, "float32").info
    assert not info.packed
    assert "attention" in info.path_reason


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
