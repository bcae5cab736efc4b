"""Prompts are computed once: for all of a call, for calls beside it and for those to come."""

from __future__ import annotations

from scoring_service.engine.events import CallEvent, CallFinished
from scoring_service.engine.loading.loader import LoadedModel
from scoring_service.types import Usage
from tests.engine.driving import engine_of, finish
from tests.engine.seven_ways import assert_equal, collect, sample_call, score_call


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
