"""Bugs in an update of the weights: it ends, the pool answers, and the next one begins."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from structlog.testing import capture_logs

from scoring_service.engine.events import CallFinished
from scoring_service.errors import Reason
from scoring_service.pool.calls.call_ends import CallEnds
from scoring_service.pool.supervision import Supervision
from scoring_service.pool.weights.sets import WeightSets
from scoring_service.pool.weights.staging import WorkerStaging
from scoring_service.pool.weights.status import Phase, Staging
from scoring_service.pool.weights.update import WeightUpdate
from scoring_service.pool.workers.readiness import PoolState
from scoring_service.rpc.admin.update_progress import report_progress
from tests.pool.scripted import drain, score_call, settled, until_state
from tests.pool.staged import Staged, begun, fault, pool_of


def fails_once(monkeypatch: pytest.MonkeyPatch, owner: Any, name: str) -> None:
    """The next call of a method meets a bug."""
    sound = getattr(owner, name)

    def broken(*_arguments: Any, **_named: Any) -> None:
        monkeypatch.setattr(owner, name, sound)
        raise RuntimeError("a bug")

    monkeypatch.setattr(owner, name, broken)


@contextmanager
def a_bug_is_logged(update: WeightUpdate) -> Iterator[None]:
    """Once, with the name of the update that met it."""
    with capture_logs() as lines:
        yield
    found = [line["update"] for line in lines if line["event"] == "update_met_a_bug"]
    assert found == [update.status.update_id]


async def answers(scripted: Staged, version: int) -> None:
    """A call gets its answer, from these weights."""
    pool = scripted.pool
    async with asyncio.timeout(20):
        await until_state(pool, PoolState.READY)
        async with pool.run(score_call(pool.new_call_id(), [1, 2], 3)) as stream:
            (part,) = scripted.workers[0].calls
            scripted.workers[0].score(part)
            await settled()
            assert isinstance(drain(stream)[-1], CallFinished)
    assert pool.info.weight_version == version


@pytest.mark.parametrize(
    ("owner", "name", "staging"),
    [
        (WeightSets, "check_version", Staging.AUTO),
        (Supervision, "parts_running", Staging.IN_PLACE),
        (WorkerStaging, "apply", Staging.IN_PLACE),
        (Supervision, "commit", Staging.IN_PLACE),
    ],
)
async def test_before_calls_begin_with_the_new_weights(
    owner: Any, name: str, staging: Staging, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It has failed, and the old ones answer."""
    scripted = await pool_of(1)
    update = begun(scripted, staging=staging)
    fails_once(monkeypatch, owner, name)
    with a_bug_is_logged(update):
        assert await fault(update) is Reason.INTERNAL_ERROR
    assert update.status.phase is Phase.FAILED
    assert update.over.done()
    await answers(scripted, version=1)
    await begun(scripted).commit()
    await answers(scripted, version=2)


@pytest.mark.parametrize(
    ("owner", "name", "staging"),
    [
        (CallEnds, "end_audits", Staging.BESIDE),
        (CallEnds, "end_audits", Staging.IN_PLACE),
        (Supervision, "change_samples", Staging.BESIDE),
    ],
)
async def test_once_calls_begin_with_the_new_weights(
    owner: Any, name: str, staging: Staging, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is committed: what calls compute with cannot be said to have failed."""
    scripted = await pool_of(1)
    update = begun(scripted, staging=staging)
    fails_once(monkeypatch, owner, name)
    with a_bug_is_logged(update):
        await update.commit()
    assert update.status.phase is Phase.COMMITTED
    assert update.over.done()
    await answers(scripted, version=2)
    await begun(scripted, 3).commit()
    await answers(scripted, version=3)


async def test_when_its_caller_has_left(monkeypatch: pytest.MonkeyPatch) -> None:
    scripted = await pool_of(1, lambda executor: setattr(executor, "applies", False))
    update = begun(scripted, staging=Staging.IN_PLACE)
    committing = asyncio.create_task(update.commit())
    await settled()
    assert update.status.phase is Phase.APPLYING
    committing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await committing
    fails_once(monkeypatch, WorkerStaging, "apply")
    with a_bug_is_logged(update):
        update.parts_changed()
        await settled()
    assert update.status.phase is Phase.FAILED
    assert scripted.pool.weights.update is None


async def test_on_the_way_here_it_is_no_caller_that_left() -> None:
    scripted = await pool_of(1)
    update = begun(scripted)

    async def work() -> None:
        raise RuntimeError("a bug")

    told = report_progress(update, work())
    await anext(told)
    with pytest.raises(RuntimeError):
        await anext(told)
    assert update.status.phase is Phase.FAILED
    assert update.fault is not None
    assert update.fault.reason is Reason.INTERNAL_ERROR

    left = begun(scripted)
    reading = report_progress(left, asyncio.Event().wait())  # type: ignore[arg-type]
    await anext(reading)
    await reading.aclose()  # type: ignore[attr-defined]
    assert left.status.phase is Phase.ABORTED
    assert left.fault is not None
    assert left.fault.reason is Reason.UPDATE_ABORTED
