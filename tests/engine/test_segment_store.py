"""Segments, pages and the prefix cache: who holds what, what is found again, what goes first."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from scoring_service.engine.attention import store as store_module
from scoring_service.engine.attention.pages import LayerShape, PagePool, slots_of
from scoring_service.engine.attention.segments import Segment, seams
from scoring_service.engine.attention.store import SegmentStore
from scoring_service.types import PAGE_TOKENS

CHUNK = 32


def make_store(pages: int) -> tuple[SegmentStore, PagePool]:
    pool = PagePool([LayerShape(1, 2, 2)], pages, torch.float32, torch.device("cpu"))
    return SegmentStore(pool, CHUNK), pool


def ids(n: int, first: int = 0) -> np.ndarray:
    return np.arange(first, first + n, dtype=np.int32)


def compute(chain: list[Segment]) -> None:
    for segment in chain:
        segment.done = len(segment.token_ids)


@pytest.mark.parametrize(
    ("start", "stop", "expected"),
    [
        (0, 0, []),
        (0, 1, [(0, 1)]),
        (0, 64, [(0, 32), (32, 64)]),
        (5, 70, [(5, 32), (32, 64), (64, 70)]),
        (32, 33, [(32, 33)]),
    ],
)
def test_seams_are_multiples_of_the_chunk(
    start: int, stop: int, expected: list[tuple[int, int]]
) -> None:
    assert list(seams(start, stop, CHUNK)) == expected


def test_a_prompt_is_found_again_up_to_a_seam() -> None:
    store, _ = make_store(100)
    first = store.prompt(ids(80), b"")
    compute(first)
    same = store.prompt(ids(80), b"")
    assert [a is b for a, b in zip(first, same, strict=True)] == [True] * 3
    longer = store.prompt(ids(100), b"")
    # 80 is no seam of the longer prompt: its last chunk is its own.
    assert [a is b for a, b in zip(first, longer, strict=False)] == [True, True, False]
    assert store.counters.hit_tokens == 80 + 64
    other = store.prompt(np.where(ids(80) == 40, 7, ids(80)).astype(np.int32), b"")
    assert other[0] is first[0]
    assert other[1] is not first[1]
    assert other[2] is not first[2], "what follows other tokens is another prefix"


def test_salts_do_not_share() -> None:
    store, _ = make_store(100)
    compute(store.prompt(ids(40), b"a"))
    assert store.prompt(ids(40), b"b")[0].computed is False


def test_a_prompt_in_flight_is_shared_too() -> None:
    store, pool = make_store(100)
    one, two = store.prompt(ids(40), b""), store.prompt(ids(40), b"")
    assert one[-1] is two[-1]
    assert store.counters.hit_tokens == 0, "it was not computed yet"
    store.release(one[-1])
    store.release(two[-1])
    assert pool.free == pool.pages, "what was never computed is not kept"


def test_a_leaf_takes_no_pages() -> None:
    store, pool = make_store(100)
    prompt = store.prompt(ids(10), b"")
    before = pool.free
    branch = store.branch(prompt[-1], ids(20))
    assert pool.free == before
    assert [s.kept for s in branch] == [False]
    longer = store.branch(prompt[-1], ids(60))
    assert [s.kept for s in longer] == [True, True, False]
    assert before - pool.free == store.branch_pages(10, 70) == 4


def test_eviction_takes_the_least_recently_used_and_its_end_first() -> None:
    store, pool = make_store(8)
    a = store.prompt(ids(64), b"a")  # four pages
    compute(a)
    store.release(a[-1])
    b = store.prompt(ids(64), b"b")
    compute(b)
    store.release(b[-1])
    assert (pool.free, store.available) == (0, 8)
    again = store.prompt(ids(64), b"a")
    assert again[0] is a[0], "still there"
    store.release(again[-1])
    c = store.prompt(ids(32), b"c")
    assert not b[1].pages, "b was used before a, and its end goes before its beginning"
    assert b[0].pages
    assert a[0].pages
    store.release(c[-1])
    store.flush()
    assert pool.free == 8
    assert store.counters.evicted_tokens >= 32


def test_nothing_is_held_when_pages_run_out() -> None:
    store, pool = make_store(3)
    with pytest.raises(IndexError):
        store.prompt(ids(64), b"")
    assert (pool.free, store.available) == (3, 3)


def test_nothing_is_held_when_the_host_has_no_memory_for_a_segment(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    store, pool = make_store(8)
    made: list[list[int]] = []

    def refused(pages: list[int], tokens: int) -> np.ndarray:
        made.append(pages)
        if len(made) == 2:
            raise MemoryError
        return slots_of(pages, tokens)

    monkeypatch.setattr(store_module, "slots_of", refused)
    with pytest.raises(MemoryError):
        store.prompt(ids(100), b"")
    assert (pool.free, store.available) == (8, 8)


def test_slots_follow_pages() -> None:
    assert slots_of([3, 1], PAGE_TOKENS + 2).tolist() == [
        *range(3 * PAGE_TOKENS, 4 * PAGE_TOKENS),
        PAGE_TOKENS,
        PAGE_TOKENS + 1,
    ]


class Anything(RuleBasedStateMachine):
    """Prompts, branches and releases in any order never lose or double a page."""

    @initialize()
    def begin(self) -> None:
        self.store, self.pool = make_store(24)
        self.held: list[Segment] = []

    @rule(length=st.integers(1, 90), salt=st.sampled_from([b"", b"x"]), done=st.booleans())
    def prompt(self, length: int, salt: bytes, done: bool) -> None:
        need = self.store.prompt_pages(ids(length), salt)
        if need > self.store.available:
            with pytest.raises(IndexError):
                self.store.prompt(ids(length), salt)
            return
        chain = self.store.prompt(ids(length), salt)
        if done:
            compute(chain)
        self.held.append(chain[-1])

    @precondition(lambda self: self.held)
    @rule(data=st.data(), length=st.integers(1, 90))
    def branch(self, data: st.DataObject, length: int) -> None:
        parent = data.draw(st.sampled_from(self.held))
        if self.store.branch_pages(parent.stop, parent.stop + length) <= self.store.available:
            self.held.append(self.store.branch(parent, ids(length, 500))[-1])

    @precondition(lambda self: self.held)
    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        segment = data.draw(st.sampled_from(self.held))
        self.held.remove(segment)
        self.store.release(segment)

    @invariant()
    def pages_are_held_once(self) -> None:
        held = {id(s): s for end in self.held for s in end.chain()}
        pages = [page for s in held.values() for page in s.pages]
        assert len(pages) == len(set(pages))
        assert self.store.available == self.pool.pages - len(pages)
        assert all(len(s.slots) == len(s.token_ids) for s in held.values() if s.kept)

    def teardown(self) -> None:
        for segment in getattr(self, "held", []):
            self.store.release(segment)
        if hasattr(self, "store"):
            self.store.flush()
            assert self.pool.free == self.pool.pages


TestAnything = Anything.TestCase
TestAnything.settings = settings(max_examples=60, deadline=None)
