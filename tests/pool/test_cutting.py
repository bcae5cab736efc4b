"""Large calls are cut beside the event loop, and admitted as the pool is then."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from threading import get_ident
from typing import Any

import pytest

from scoring_service.errors import Fault, Reason, ServiceError
from scoring_service.pool.calls import cutting
from scoring_service.pool.observer import PoolObserver
from scoring_service.pool.streams.stream import CallStream
from scoring_service.types import ScoreCall
from tests.pool.scripted import Scripted, score_call, settled

LARGE = [2] * 2000


@contextmanager
def held(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Calls are cut no sooner than this context ends."""
    go_on = threading.Event()
    cut_at_once = cutting.cut_at_once

    def late(*arguments: Any) -> cutting.Cut:
        assert go_on.wait(30)
        return cut_at_once(*arguments)

    monkeypatch.setattr(cutting, "cut_at_once", late)
    try:
        yield
    finally:
        go_on.set()


async def enter(made: Scripted, call: ScoreCall) -> CallStream:
    async with made.pool.run(call) as stream:
        return stream


async def test_others_are_admitted_and_answered_while_a_large_call_is_cut(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    made = await Scripted(1, max_queue_tokens=100_000).start()
    with held(monkeypatch):
        large = asyncio.create_task(enter(made, score_call(1, [1], *LARGE)))
        await settled()
        assert not large.done()
        assert made.pool.queued_tokens == 0, "nobody waits for what is not admitted"
    stream = await large
    assert stream.tokens == 3 * 2000
    assert made.pool.queued_tokens == 0


async def test_spans_make_a_call_large_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """One completion may have as many as its tokens allow, and each is looked at."""
    threads: dict[int, int] = {}
    size_of = cutting.size_of

    def watched(call: ScoreCall) -> Any:
        threads[sum(len(c.spans) for g in call.groups for c in g.completions)] = get_ident()
        return size_of(call)

    monkeypatch.setattr(cutting, "size_of", watched)
    made = await Scripted(1, max_queue_tokens=100_000).start()
    for spans in (100, 1000):
        whole = score_call(spans, [1], 2 * spans)
        (group,) = whole.groups
        (completion,) = group.completions
        some = replace(completion, spans=tuple((2 * i, 1) for i in range(spans)))
        await enter(made, replace(whole, groups=(replace(group, completions=(some,)),)))
    assert threads[100] == get_ident()
    assert threads[1000] != get_ident()


async def test_a_large_call_meets_the_state_that_the_pool_has_once_it_is_cut(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    made = await Scripted(1, max_queue_tokens=100_000).start()
    with held(monkeypatch):
        large = asyncio.create_task(enter(made, score_call(1, [1], *LARGE)))
        await settled()
        made.pool.pause()
    with pytest.raises(ServiceError) as refused:
        await large
    assert refused.value.fault.reason is Reason.DRAINING
    assert made.pool.calls_left == 0


@pytest.mark.parametrize("lengths", [[5], LARGE])
async def test_what_is_refused_while_it_is_cut_is_counted(
    lengths: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    refused = []

    class Observer(PoolObserver):
        def refused(self, reason: str) -> None:
            refused.append(reason)

    def without_memory(*_arguments: Any) -> None:
        raise ServiceError(Fault(Reason.OUT_OF_MEMORY, "too much"))

    monkeypatch.setattr(cutting, "check_memory", without_memory)
    made = await Scripted(1, Observer()).start()
    with pytest.raises(ServiceError):
        await enter(made, score_call(1, [1], *lengths))
    assert refused == [Reason.OUT_OF_MEMORY]
    assert made.pool.calls_left == 0
