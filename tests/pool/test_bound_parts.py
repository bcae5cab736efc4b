"""Parts that one worker alone can compute wait for it; what may go to others does not."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace

import pytest

from scoring_service.engine.events import CallFinished
from scoring_service.engine.machine.page_budget import MAX_SAMPLES
from scoring_service.pool.streams.stream import CallStream, Part
from scoring_service.pool.workers.window import has_room
from scoring_service.pool.workers.worker import Worker
from scoring_service.types import Call, EngineInfo, SampleCall
from tests.pool.scripted import (
    ScriptedExecutor,
    drain,
    rows,
    sample_call,
    score_call,
    settled,
    until,
)
from tests.pool.staged import MODEL, Staged, begun


def is_first(info: EngineInfo) -> bool:
    return info.weight_version == 1


@asynccontextmanager
async def only_one_has_the_old(
    *calls: Call, batch_tokens: int = 16
) -> AsyncIterator[tuple[Staged, CallStream]]:
    """Two workers, and calls that insist on weights which worker 0 alone still has.

    Both had parts of the first; those of worker 1 are first among what waits of it.
    """

    def prepare(executor: ScriptedExecutor) -> None:
        executor.info = replace(MODEL, max_batch_tokens=batch_tokens)

    made = Staged(2, max_queue_tokens=10**6)
    made.prepare = prepare
    await made.start()
    async with AsyncExitStack() as running:
        stream, *_ = [
            await running.enter_async_context(made.pool.run(call, "old", accepts=is_first))
            for call in calls
        ]
        await begun(made).commit()
        made.workers[1].die("SIGKILL", from_outside=True)
        await settled()
        await until(lambda: made.pool.workers[1].is_ready)
        assert [0 in worker.weights for worker in made.pool.workers] == [True, False]
        assert stream.running
        assert stream.waiting
        yield made, stream


def workers_of(made: Staged, stream: CallStream) -> list[int]:
    return [w.index for w in made.pool.workers for p in w.parts.values() if p.stream is stream]


async def test_others_go_to_idle_workers_while_a_part_waits_for_the_one_that_has_its_weights() -> (
    None
):
    old = score_call(1, [1], *[100] * 4, priority=1)
    async with (
        only_one_has_the_old(old) as (made, stream),
        made.pool.run(score_call(2, [2], 100), "b") as first,
        made.pool.run(score_call(3, [2], 100), "c") as second,
    ):
        assert (workers_of(made, stream), workers_of(made, first)) == ([0], [1])
        assert not second.running
        throughput = made.pool._calls.admission.throughput
        assert throughput.pressed, "no worker has room for what may go anywhere"
        (part,) = made.workers[1].calls
        made.workers[1].score(part)
        await settled()
        assert workers_of(made, second) == [1]
        while not stream.ended:
            (part,) = stream.running
            made.workers[0].score(part)
            await settled()
        events = drain(stream)
    assert sorted(rows(events)) == [(c, float(i)) for c in range(4) for i in range(100)]
    assert isinstance(events[-1], CallFinished)


async def test_smaller_ones_do_not_keep_it_waiting() -> None:
    """The worker has room for them, but is kept for what it alone can compute."""
    old = score_call(1, [1], 60, 100, 100, priority=1)
    async with (
        only_one_has_the_old(old) as (made, stream),
        made.pool.run(score_call(2, [2], 90), "b") as first,
        made.pool.run(score_call(3, [2], 50), "c") as small,
    ):
        assert (workers_of(made, stream), workers_of(made, first)) == ([0], [1])
        assert not small.running
        (part,) = made.workers[0].calls
        made.workers[0].score(part)
        await settled()
        assert workers_of(made, stream) == [0]
        assert not small.running
        made.workers[0].score(next(iter(made.workers[0].calls)))
        await settled()
        made.workers[0].score(next(iter(made.workers[0].calls)))
        await settled()
        assert stream.ended
        assert workers_of(made, small) == [0]


async def test_samples_that_wait_for_their_worker_leave_others_its_tokens() -> None:
    """But none of its slots, unless they draw nothing yet; other workers draw what they can."""
    (task,) = sample_call(1, n=20, max_tokens=10).prompts
    old = SampleCall(1, tuple(replace(task, index=index) for index in range(40)), priority=1)
    async with (
        only_one_has_the_old(old, batch_tokens=1024) as (made, stream),
        made.pool.run(sample_call(2, n=MAX_SAMPLES + 10, max_tokens=5), "b") as many,
        made.pool.run(score_call(3, [2], *[4000] * 4), "c") as score,
    ):
        assert workers_of(made, stream) == [0] * (MAX_SAMPLES // 20)
        assert workers_of(made, many) == [1] * (MAX_SAMPLES // 32)
        assert many.waiting, "there are slots for ten samples, which twenty wait for"
        assert sorted(workers_of(made, score)) == [0, 1]
        made.workers[0].draw(next(iter(stream.running)))
        await settled()
        assert workers_of(made, stream) == [0] * (MAX_SAMPLES // 20)
        assert many.waiting


async def test_however_many_wait_for_the_same_worker_one_of_them_is_asked(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked: list[int] = []

    def counting(part: Part, worker: Worker, batch_tokens: int) -> bool:
        asked.append(part.stream.call.call_id)
        return has_room(part, worker, batch_tokens)

    old = [score_call(number, [1], *[100] * 3, priority=1) for number in range(1, 51)]
    async with (
        only_one_has_the_old(*old) as (made, _),
        made.pool.run(score_call(100, [2], *[100] * 3), "b") as other,
    ):
        for _ in range(3):
            assert workers_of(made, other) == [1]
            monkeypatch.setattr("scoring_service.pool.calls.dispatch.has_room", counting)
            (part,) = made.workers[1].calls
            made.workers[1].score(part)
            await settled()
            assert len(asked) <= 4, "of those that insist the first, and who may go anywhere"
            asked.clear()
        assert other.ended
