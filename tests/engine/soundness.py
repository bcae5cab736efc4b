"""What must hold of an engine between any two steps: who has which pages, and what waits."""

from __future__ import annotations

from scoring_service.engine.attention.segments import Segment
from scoring_service.engine.attention.store import SegmentStore
from scoring_service.engine.packed.engine import PackedEngine
from scoring_service.types import PAGE_TOKENS


def assert_sound(engine: PackedEngine) -> None:
    """Every page has one owner or is free, and nothing waits for what has ended."""
    runs = list(engine._calls.by_id.values())
    for run in runs:
        belong = {unit.completion for unit in run.units} - {None}
        assert belong <= run.completions, "what waits belongs to something that goes on"
        begun = {unit.sample for unit in run.units} - {None}
        assert begun <= set(run.samples)
    samples = [sample for run in runs for sample in run.samples]
    ends = [unit.segment for run in runs for unit in run.units if unit.segment is not None]
    ends += [completion.end for run in runs for completion in run.completions]
    ends += [sample.prompt_end for sample in samples]
    segments: dict[int, Segment] = {
        id(segment): segment
        for end in [*ends, *engine._store._shared.values()]
        for segment in end.chain()
    }
    for segment in segments.values():
        assert {int(slot) // PAGE_TOKENS for slot in segment.slots} == set(segment.pages)
    owned = [page for segment in segments.values() for page in segment.pages]
    owned += [page for sample in samples for page in sample.pages]
    assert len(owned) == len(set(owned)), "a page has two owners"
    _assert_store_sound(engine._store)
    free = engine._store._pool._free
    assert not set(owned) & set(free), "a page has an owner and is free"


def _assert_store_sound(store: SegmentStore) -> None:
    """What may be found is held, or whole and waits to be; and so is what it continues."""
    for key, segment in store._shared.items():
        assert segment.key == key
        assert (segment.holders == 0) == (key in store._idle)
        assert segment.holders or segment.computed
        if segment.parent is not None:
            assert store._shared[segment.parent.key] is segment.parent
            assert segment.parent.holders >= (segment.holders > 0)
        if segment.computed:
            assert segment.end_state is not None
    assert store._idle_pages == sum(len(segment.pages) for segment in store._idle.values())
