"""Updates of the weights with workers that do what a test tells them."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from scoring_service.engine.events import (
    CallFailed,
    CallFinished,
    Cancel,
    Command,
    DropWeights,
    ItemFailed,
    WeightsStaged,
)
from scoring_service.errors import Reason, ServiceError
from scoring_service.pool.pool import WorkerPool
from scoring_service.pool.streams.self_audit import AuditSettings
from scoring_service.pool.weights import phase_limits
from scoring_service.pool.weights.status import Phase, RunningSamples, Staging, UpdateOptions
from scoring_service.pool.weights.update import WeightUpdate
from scoring_service.types import EngineInfo, ScoreCall
from tests.pool.scripted import Audits, drain, sample_call, score_call, settled
from tests.pool.staged import MODEL, Staged, begun, fault, pool_of


async def test_workers_that_read_different_weights() -> None:
    """None of them is taken."""
    scripted = await pool_of(2)
    scripted.workers[1].digest = "other"  # type: ignore[attr-defined]
    update = begun(scripted)
    assert await fault(update) is Reason.INTERNAL_ERROR
    assert scripted.pool.info.weight_version == 1
    await settled()
    for worker in scripted.workers:
        assert worker.dropped == [update.number]  # type: ignore[attr-defined]


async def test_no_room_beside() -> None:
    """An error where it was asked for, else in place once running calls have ended."""

    def narrow(executor: Any) -> None:
        executor.usable = False

    scripted = await pool_of(2, narrow)
    assert await fault(begun(scripted, staging=Staging.BESIDE)) is Reason.OUT_OF_MEMORY
    pool = scripted.pool
    async with pool.run(score_call(pool.new_call_id(), [1, 2], 3)) as running:
        update = begun(scripted)
        committing = asyncio.create_task(update.commit())
        await settled()
        assert update.status.phase is Phase.DRAINING
        async with pool.run(score_call(pool.new_call_id(), [1, 2], 3)) as waiting:
            await settled()
            ((busy, part),) = [
                (w, call_id) for w in scripted.workers for call_id in w.calls
            ]  # the second call waits for the new weights
            assert not any(w.applied for w in scripted.workers)  # type: ignore[attr-defined]
            busy.score(part)
            await settled()
            await committing
            assert update.status.staging is Staging.IN_PLACE
            assert pool.info.weight_version == 2
            await settled()
            ((busy, part),) = [(w, call_id) for w in scripted.workers for call_id in w.calls]
            busy.score(part)
            await settled()
            assert waiting.ended
        assert running.ended


async def test_in_place_waits_for_what_insists_on_the_old_weights() -> None:
    """All parts of a call that was begun; one that was not waits, and is then told."""
    scripted = await pool_of(1)
    pool, worker = scripted.pool, scripted.workers[0]

    def first(info: EngineInfo) -> bool:
        return info.weight_version == 1

    begun_call = score_call(pool.new_call_id(), [1] * 10, *[60] * 6)
    async with (
        pool.run(begun_call, accepts=first) as insisting,
        pool.run(score_call(pool.new_call_id(), [1], 60), accepts=first) as late,
        pool.run(score_call(pool.new_call_id(), [1], 60)) as other,
    ):
        await settled()
        assert insisting.running
        assert insisting.waiting
        assert not late.running
        update = begun(scripted, staging=Staging.IN_PLACE)
        committing = asyncio.create_task(update.commit())
        await settled()
        while worker.calls:
            assert update.status.phase is Phase.DRAINING
            worker.score(next(iter(worker.calls)))
            await settled()
            if insisting.ended:
                break
        await committing
        assert isinstance(drain(insisting)[-1], CallFinished)
        (told,) = drain(late)
        assert isinstance(told, CallFailed)
        assert told.fault.reason is Reason.WEIGHT_VERSION_MISMATCH
        assert other.running


async def test_calls_that_outlast_the_patience_of_an_update_in_place(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It is given up under a name of its own, and what waited goes on with the old weights."""
    monkeypatch.setattr(phase_limits, "STAGING_SECONDS", 0.02)
    scripted = await pool_of(1)
    pool, worker = scripted.pool, scripted.workers[0]
    async with (
        pool.run(score_call(pool.new_call_id(), [1], 60)) as running,
        pool.run(score_call(pool.new_call_id(), [1], 60)) as other,
    ):
        await settled()
        update = begun(scripted, staging=Staging.IN_PLACE)
        committing = asyncio.create_task(update.commit())
        # The time for staging is not that for draining.
        assert await asyncio.wait({committing}, timeout=0.05) == (set(), {committing})
        monkeypatch.setattr(phase_limits, "DRAINING_SECONDS", 0.02)
        await given_up(pool, update, committing)
        update = begun(scripted, staging=Staging.IN_PLACE)
        assert await fault(update) is Reason.CALLS_STILL_RUNNING
        assert update.status.phase is Phase.FAILED
        for stream in (running, other):
            worker.score(next(iter(worker.calls)))
            await settled()
            assert isinstance(drain(stream)[-1], CallFinished)
    assert pool.info.weight_version == 1


async def given_up(pool: WorkerPool, update: WeightUpdate, committing: asyncio.Task[None]) -> None:
    """By AbortUpdate, which can while calls are waited for."""
    assert update.status.phase is Phase.DRAINING
    pool.weights.abort("")
    with pytest.raises(ServiceError):
        await committing
    assert update.status.phase is Phase.ABORTED


async def test_a_version_names_one_set_of_weights() -> None:
    """The running number is for the running bytes, and so is one that calls still use."""
    scripted = await pool_of(1)
    pool, worker = scripted.pool, scripted.workers[0]
    again = {"version": 1, "allow_older_version": True}
    assert await fault(begun(scripted, **again)) is Reason.WEIGHT_VERSION_NOT_NEWER
    with pytest.raises(ServiceError) as caught:
        begun(scripted, **again, digest="new")
    assert caught.value.fault.reason is Reason.WEIGHT_VERSION_NOT_NEWER
    worker.digest = MODEL.weights_digest  # type: ignore[attr-defined]
    await begun(scripted, **again).commit()
    async with pool.run(score_call(pool.new_call_id(), [1, 2], 3)):
        await settled()
        worker.digest = "new"  # type: ignore[attr-defined]
        await begun(scripted, 2).commit()
        worker.digest = "other"  # type: ignore[attr-defined]
        assert await fault(begun(scripted, **again)) is Reason.WEIGHT_VERSION_NOT_NEWER
        worker.score(next(iter(worker.calls)))
        await settled()
    await begun(scripted, **again).commit()
    assert (pool.info.weight_version, pool.info.weights_digest) == (1, "other")


async def test_too_late_to_be_given_up() -> None:
    """What is being written over the running weights goes on when its caller leaves."""
    scripted = await pool_of(1, lambda executor: setattr(executor, "applies", False))
    update = begun(scripted, staging=Staging.IN_PLACE)
    committing = asyncio.create_task(update.commit())
    await settled()
    assert update.status.phase is Phase.APPLYING
    committing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await committing
    with pytest.raises(ServiceError) as caught:
        scripted.pool.weights.abort("")
    assert caught.value.fault.reason is Reason.UPDATE_APPLYING
    scripted.workers[0].on_event(WeightsStaged(update.number, "new", "n2", True))
    await update.over
    assert update.status.phase is Phase.COMMITTED
    assert scripted.pool.info.weight_version == 2


async def test_an_update_given_up_in_the_moment_of_its_commit() -> None:
    """Before the task has begun that finishes it."""
    scripted = await pool_of(1)
    update = begun(scripted)
    committing = asyncio.create_task(update.commit())
    asyncio.get_running_loop().call_soon(scripted.pool.weights.abort, "")
    with pytest.raises(ServiceError) as caught:
        await committing
    assert caught.value.fault.reason is Reason.UPDATE_ABORTED
    assert update.status.phase is Phase.ABORTED
    for version in (2, 3):
        assert not begun(scripted, version).is_over
        scripted.pool.weights.abort("")


async def test_weights_over_which_workers_die() -> None:
    """They are given up after the third time, and the old ones answer again."""

    def mortal(executor: Any) -> None:
        executor.dies_applying = True

    scripted = await pool_of(1, mortal)
    async with asyncio.timeout(5):
        assert await fault(begun(scripted, staging=Staging.IN_PLACE)) is Reason.WORKER_DIED
        while not scripted.pool.workers[0].is_ready:
            await scripted.pool.wait_changed()
    assert scripted.pool.info.weight_version == 1
    assert scripted.pool.workers[0].weights == {0}
    pool = scripted.pool
    async with pool.run(score_call(pool.new_call_id(), [1, 2], 3)) as stream:
        await settled()
        (part,) = scripted.workers[0].calls
        scripted.workers[0].score(part)
        await settled()
        assert stream.ended


@pytest.mark.parametrize("count", [1, 2])
async def test_a_worker_that_dies_once_over_the_weights(count: int) -> None:
    """It starts again with the version committed last, and is given the new one again."""
    made: list[Any] = []

    def mortal(executor: Any) -> None:
        executor.dies_applying = not made
        made.append(executor)

    scripted = await pool_of(count, mortal)
    async with asyncio.timeout(5):
        update = begun(scripted, staging=Staging.IN_PLACE)
        await update.commit()
        while not all(worker.is_ready for worker in scripted.pool.workers):
            await scripted.pool.wait_changed()
    assert update.status.phase is Phase.COMMITTED
    assert len(made) == count + 1
    assert scripted.pool.info.weight_version == 2
    assert [worker.weights for worker in scripted.pool.workers] == [{update.number}] * count


@pytest.mark.parametrize("count", [1, 2])
async def test_a_worker_that_dies_while_it_gives_tensors(count: int) -> None:
    """Another one is asked, or the same when it is back."""
    made: list[Any] = []

    def silent(executor: Any) -> None:
        executor.fills = bool(made)
        made.append(executor)

    scripted = await pool_of(count, silent)
    update = scripted.pool.weights.begin(UpdateOptions(2, partial=True), "")
    committing = asyncio.create_task(update.commit())
    await settled()
    assert made[0].asked == [update.number]
    assert not committing.done()
    made[0].die()
    async with asyncio.timeout(5):
        await committing
        while not all(worker.is_ready for worker in scripted.pool.workers):
            await scripted.pool.wait_changed()
    assert [executor.asked for executor in made[1:]].count([update.number]) == 1
    assert scripted.pool.info.weight_version == 2
    assert [worker.weights for worker in scripted.pool.workers] == [{update.number}] * count


async def test_a_worker_that_cannot_stage() -> None:
    """The update fails everywhere; memory that is missing is named as such."""
    for message, reason in (
        ("OSError: gone", Reason.INTERNAL_ERROR),
        ("MemoryError: ", Reason.OUT_OF_MEMORY),
    ):
        scripted = await pool_of(2)
        scripted.workers[1].fails = message  # type: ignore[attr-defined]
        assert await fault(begun(scripted)) is reason
        assert scripted.pool.weights.update is None


async def test_a_worker_that_comes_back_with_other_weights() -> None:
    """It is not let in, however often it is started."""
    scripted = await pool_of(2)
    await begun(scripted).commit()

    def changed(executor: Any) -> None:
        executor.digest = "other"

    scripted.prepare = changed
    scripted.workers[0].die()
    async with asyncio.timeout(5):
        while len(scripted.starts[0]) < 3:
            await scripted.pool.wait_changed()
    assert not scripted.pool.workers[0].is_ready
    scripted.prepare = lambda _executor: None
    async with asyncio.timeout(5):
        while not scripted.pool.workers[0].is_ready:
            await scripted.pool.wait_changed()
    number = scripted.pool.weights.current.number
    assert scripted.pool.workers[0].weights == {number}
    assert scripted.workers[0].applied == [number]  # type: ignore[attr-defined]


async def test_memory_is_used_again() -> None:
    """The third update is written where the first was, once no call needs that."""
    scripted = await pool_of(1)
    pool = scripted.pool
    await begun(scripted, 2).commit()
    first = pool.weights.current.memory
    await begun(scripted, 3).commit()
    await settled()
    async with pool.run(score_call(pool.new_call_id(), [1, 2], 3)):
        await settled()
        await begun(scripted, 4).commit()
        assert pool.weights.current.memory is first
        assert [held.info.weight_version for held in pool.weights.weight_sets.older] == [3]
        (part,) = scripted.workers[0].calls
        scripted.workers[0].score(part)
        await settled()
        assert not pool.weights.weight_sets.older


@pytest.mark.parametrize("policy", [RunningSamples.CONTINUE, RunningSamples.ABORT])
async def test_in_place_waits_for_no_samples_that_no_worker_has(policy: RunningSamples) -> None:
    """Their worker died, and the other one is full: they are of those that are being drawn."""
    scripted = await pool_of(2)
    pool = scripted.pool
    async with (
        pool.run(sample_call(1, 64, 3)) as samples,
        pool.run(sample_call(2, 32, 3), "b"),
        pool.run(score_call(3, [1] * 3, 90), "c") as score,
    ):
        await settled()
        (of_score,) = (
            w.index for w in pool.workers if any(p.stream is score for p in w.parts.values())
        )
        dead = 1 - of_score
        assert [p.stream for p in pool.workers[dead].parts.values()].count(samples) == 1

        def stays_dead(executor: Any) -> None:
            executor.ready_at_once = False

        scripted.prepare = stays_dead
        scripted.workers[dead].die("SIGKILL", from_outside=True)
        await settled()
        (waits,) = samples.waiting
        assert waits.weights is not None
        update = begun(scripted, staging=Staging.IN_PLACE, running_samples=policy)
        commit = asyncio.create_task(update.commit())
        await settled()
        assert update.status.phase is Phase.DRAINING
        worker = scripted.workers[of_score]
        (part,) = (call_id for call_id, call in worker.calls.items() if isinstance(call, ScoreCall))
        worker.score(part)
        await asyncio.wait_for(commit, 10)
        assert update.status.phase is Phase.COMMITTED
        events = drain(samples)
        if policy is RunningSamples.ABORT:
            failed = {e.part for e in events if isinstance(e, ItemFailed)}
            assert failed == set(range(64))
            assert isinstance(events[-1], CallFinished)
        else:
            assert not [e for e in events if isinstance(e, ItemFailed)]
            assert {p.weights for p in samples.running.values()} == {update.number}


async def test_audits_that_wait_keep_no_weights_beyond_an_update() -> None:
    """Others always go first: they would wait for as long as there is work, each with a copy."""
    audits = Audits()
    scripted = Staged(1, audits, audit=AuditSettings(rate=1.0))
    await scripted.start()
    pool, worker = scripted.pool, scripted.workers[0]
    async with (
        pool.run(score_call(pool.new_call_id(), [1], 5), "audited"),
        pool.run(score_call(pool.new_call_id(), [1] * 3, 120), "load"),
        pool.run(score_call(pool.new_call_id(), [1] * 3, 120), "load"),
    ):
        (audited,) = worker.calls
        worker.score(audited)
        await settled()
        assert len(pool._calls.streams) == 3, "the audit waits behind the others"
        await begun(scripted).commit()
        await settled()
        assert audits.seen == [("refused", None)]
        (old,) = worker.calls
        worker.score(old)
        await settled()
        assert worker.calls, "there is more to do"
        assert pool.weights.weight_sets.older == []


@pytest.mark.parametrize("insists", [False, True])
async def test_weights_are_dropped_once_their_last_part_is_cancelled(insists: bool) -> None:
    """A worker that is told of both later would go on with the part on what is free by then."""
    scripted = await pool_of(1)
    pool, worker = scripted.pool, scripted.workers[0]
    told: list[Command] = []
    send = worker.send

    def noting(command: Command) -> None:
        told.append(command)
        send(command)

    worker.send = noting  # type: ignore[method-assign]
    large = score_call(pool.new_call_id(), [1], 60, 60, 60)
    accepts = (lambda info: info.weight_version == 1) if insists else None
    async with pool.run(large, accepts=accepts):
        await settled()
        parts = set(worker.calls)
        assert len(parts) == 2
        await begun(scripted).commit()
        told.clear()
    assert {command.call_id for command in told[:2] if isinstance(command, Cancel)} == parts
    assert told[2:] == [DropWeights(0)]


async def test_a_shut_down_ends_an_update_that_can_be_given_up_no_more() -> None:
    """No worker is left that could write it: whoever pushed it is told so."""

    def slow(executor: Any) -> None:
        executor.applies = False

    scripted = await pool_of(1, slow)
    update = begun(scripted, staging=Staging.IN_PLACE)
    committing = asyncio.create_task(update.commit())
    await settled()
    assert update.status.phase is Phase.APPLYING
    await scripted.pool.drain(0.0)
    await settled()
    assert committing.done()
    error = committing.exception()
    assert isinstance(error, ServiceError)
    assert error.fault.reason is Reason.DRAINING
    assert update.status.phase is Phase.FAILED
    assert scripted.pool.weights.update is None


async def test_every_sample_of_a_call_is_aborted_that_no_worker_has_any_more() -> None:
    """The call has ended only then, though several of its parts wait."""
    scripted = await pool_of(2)
    pool = scripted.pool
    async with pool.run(score_call(1, [1] * 3, 120)), pool.run(sample_call(2, 64, 3)) as samples:
        await settled()
        assert [len(worker.parts) for worker in pool.workers] == [1, 2]

        def stays_dead(executor: Any) -> None:
            executor.ready_at_once = False

        scripted.prepare = stays_dead
        scripted.workers[1].die("SIGKILL", from_outside=True)
        await settled()
        assert len(samples.waiting) == 2
        await begun(scripted, running_samples=RunningSamples.ABORT).commit()
        events = drain(samples)
    failed = [event.part for event in events if isinstance(event, ItemFailed)]
    assert sorted(part for part in failed if part is not None) == list(range(64))
    assert isinstance(events[-1], CallFinished)
