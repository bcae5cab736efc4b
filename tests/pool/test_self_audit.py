"""A second computation, alone and elsewhere, and what comes of a difference."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from structlog.testing import capture_logs

from scoring_service.engine.events import CallFinished
from scoring_service.pool.streams.self_audit import AuditSettings, largest_difference, widest
from scoring_service.pool.weights.sets import WeightSet
from scoring_service.telemetry.metrics import Metrics
from scoring_service.types import ScoreCall
from tests.pool.scripted import INFO, Audits, Scripted, score_call, settled


async def answer_everything(made: Scripted) -> list[tuple[int, ScoreCall]]:
    """Lets the workers answer until nothing is left; (worker, call) in order."""
    answered = []
    while made.busy:
        for index in made.busy:
            for part, call in list(made.workers[index].calls.items()):
                answered.append((index, call))
                made.workers[index].score(part)
        await settled()
    return answered


@pytest.mark.parametrize("offset", [0.0, 0.25])
async def test_a_completion_is_computed_again_elsewhere_and_compared(offset: float) -> None:
    audits = Audits()
    made = await Scripted(2, audits, audit=AuditSettings(rate=1.0)).start()
    with capture_logs() as logs:
        call = score_call(1, [1, 2], 5, 3, request_id="r-1")
        async with made.pool.run(call, "trainer") as stream:
            made.workers[1].offset = offset
            (home, _), (elsewhere, again) = await answer_everything(made)
            assert isinstance(list(iter(stream.next_nowait, None))[-1], CallFinished)
    assert (home, elsewhere) == (0, 1)
    assert [len(group.completions) for group in again.groups] == [1], "alone"
    assert again.uncached
    assert made.workers[elsewhere].alone == {again.call_id}, "no other call joins its steps"
    assert again.priority < -100
    assert audits.seen == [("above_threshold" if offset else "same", offset)]
    errors = [line for line in logs if line["event"] == "self_audit"]
    assert [line["difference"] for line in errors] == ([offset] if offset else [])
    for line in errors:
        assert line["request_id"] == "r-1", "as the caller knows it"
        assert line["answered"] == line["row"]
        assert line["again"] == line["row"] + offset
    assert made.pool.queued_tokens == 0


@pytest.mark.parametrize(
    ("made_of", "threshold", "difference", "outcome"),
    [
        ({"deterministic": True, "dtype": "bfloat16"}, None, 0.25, "above_threshold"),
        ({"deterministic": False, "dtype": "float32"}, None, 0.25, "above_threshold"),
        ({"deterministic": False, "dtype": "float32"}, None, 0.001953125, "different"),
        ({"deterministic": False, "dtype": "bfloat16"}, None, 0.25, "different"),
        ({"deterministic": False, "head_dtype": "float16"}, None, 0.25, "different"),
        ({"deterministic": False, "dtype": "bfloat16"}, None, 4.0, "above_threshold"),
        ({"deterministic": False, "dtype": "bfloat16"}, None, math.inf, "above_threshold"),
        ({"deterministic": False, "dtype": "bfloat16"}, 0.125, 0.25, "above_threshold"),
        ({"deterministic": True, "dtype": "float32"}, 0.5, 0.25, "different"),
    ],
)
async def test_how_much_is_too_much_depends_on_what_is_promised(
    made_of: dict[str, Any], threshold: float | None, difference: float, outcome: str
) -> None:
    """Each time one occurs again it counts, so that an alert sees the second, too."""
    metrics = Metrics()
    made = Scripted(2, metrics, audit=AuditSettings(1.0, threshold))
    made.prepare = lambda executor: setattr(executor, "info", replace(INFO, **made_of))
    await made.start()
    sample = metrics.registry.get_sample_value
    assert sample("scoring_self_audits_total", {"outcome": "above_threshold"}) == 0
    for times in (1, 2):
        made.workers[1].offset = difference
        with capture_logs() as logs:
            async with made.pool.run(score_call(made.pool.new_call_id(), [1, 2], 1)):
                (home, _), (elsewhere, _) = await answer_everything(made)
        assert (home, elsewhere) == (0, 1)
        assert sample("scoring_self_audits_total", {"outcome": outcome}) == times
        errors = [line for line in logs if line["event"] == "self_audit"]
        assert len(errors) == (outcome == "above_threshold")


async def test_audits_that_wait_do_not_pile_up() -> None:
    audits = Audits()
    made = await Scripted(1, audits, audit=AuditSettings(rate=1.0)).start()
    worker = made.workers[0]
    for call_id in range(1, 13):
        async with made.pool.run(score_call(made.pool.new_call_id(), [1], 5)):
            (part,) = (i for i, call in worker.calls.items() if not call.uncached)  # type: ignore[union-attr]
            worker.score(part)
            await settled()
        assert len(made.busy) == 1, call_id
    assert len(worker.alone) == 8
    assert audits.seen == [("skipped", None)] * 4
    await answer_everything(made)
    assert audits.seen[4:] == [("same", 0.0)] * 8


async def test_other_weights_of_the_same_version_are_not_compared() -> None:
    """What was answered is gone by then, and what has its number now is no second computation."""
    audits = Audits()
    made = await Scripted(1, audits, audit=AuditSettings(rate=1.0)).start()
    worker = made.workers[0]
    async with made.pool.run(score_call(1, [1], 5), "trainer"):
        await settled()
        worker.score(next(iter(worker.calls)))
        made.pool.workers[0].weights = {0, 1}
        made.pool.weights.owner.commit(WeightSet(1, replace(INFO, weights_digest="other")))
        worker.offset = 0.25
        await settled()
        assert await answer_everything(made) == []
    assert audits.seen == [("refused", None)]


async def test_audits_are_not_audited_and_a_rate_of_zero_makes_none() -> None:
    audits = Audits()
    made = await Scripted(1, audits, audit=AuditSettings(rate=0.0)).start()
    async with made.pool.run(score_call(1, [1], 5)) as stream:
        assert len(await answer_everything(made)) == 1
        assert isinstance(list(iter(stream.next_nowait, None))[-1], CallFinished)
    assert audits.seen == []


def test_the_largest_difference() -> None:
    row = np.array([-1.0, -np.inf, np.nan], dtype=np.float32)
    assert largest_difference(row, row.copy()) == 0.0
    assert largest_difference(row, row + np.float32(0.5)) == 0.5
    assert largest_difference(row, np.zeros(3, dtype=np.float32)) == math.inf
    assert largest_difference(row, row[:2]) == math.inf


def test_the_row_of_the_largest_difference() -> None:
    left = np.array([-1.0, -np.inf, np.nan, -2.0], dtype=np.float32)
    right = np.array([-1.5, -np.inf, np.nan, -4.0], dtype=np.float32)
    assert widest(left, right) == {"row": 3, "answered": -2.0, "again": -4.0}
    right[1] = 0.0
    assert widest(left, right)["row"] == 1
    assert widest(left, right[:2]) == {}
