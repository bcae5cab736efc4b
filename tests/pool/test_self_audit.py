"""A second computation, alone and elsewhere, and what comes of a difference."""

from __future__ import annotations

import math

import numpy as np
import pytest
from structlog.testing import capture_logs

from scoring_service.engine.events import CallFinished
from scoring_service.pool.observer import PoolObserver
from scoring_service.pool.self_audit import AuditSettings, largest_difference
from scoring_service.types import ScoreCall
from tests.pool.scripted import Scripted, score_call, settled


class Audits(PoolObserver):
    def __init__(self) -> None:
        self.seen: list[tuple[str, float | None]] = []

    def audited(self, outcome: str, difference: float | None = None) -> None:
        self.seen.append((outcome, difference))


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
        async with made.pool.run(score_call(1, [1, 2], 5, 3), "trainer") as stream:
            made.workers[1].offset = offset
            (home, _), (elsewhere, again) = await answer_everything(made)
            assert isinstance(list(iter(stream.next_nowait, None))[-1], CallFinished)
    assert (home, elsewhere) == (0, 1)
    assert [len(group.completions) for group in again.groups] == [1], "alone"
    assert again.uncached
    assert audits.seen == [("different" if offset else "same", offset)]
    errors = [line for line in logs if line["event"] == "self_audit"]
    assert [line["difference"] for line in errors] == ([offset] if offset else [])
    assert made.pool.queued_tokens == 0


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
