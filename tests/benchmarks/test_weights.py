"""How live weights are measured: who scores meanwhile tells of every call, or that it died."""

from __future__ import annotations

import multiprocessing

import pytest

from benchmarks.weights.scoring import scoring
from tests.e2e.processes import until
from tests.e2e.served import serving


@pytest.mark.timeout(180)
def test_who_scores_meanwhile_tells_of_every_call_or_that_it_died() -> None:
    with serving("--metrics-port", "0") as server:
        target = server.ready
        with scoring(target) as latencies:
            # Sixteen tokens a call.
            until(lambda: server.metric("scoring_scored_tokens_total") >= 80)
            calls = latencies()
        assert len(calls) >= 3
        assert all(began < ended for began, ended, _ in calls)
        assert {version for _, _, version in calls} == {0}
        with scoring(target) as latencies:
            (process,) = multiprocessing.active_children()
            process.kill()
            process.join()
            with pytest.raises((EOFError, OSError)):
                latencies()
