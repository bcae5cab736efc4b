"""Makes the plan of the next step: whose weights, whose samples, which segments of which calls."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence

from scoring_service.engine.events import CallEvent
from scoring_service.engine.packed.call_run import CallRun, Unit
from scoring_service.engine.packed.decoding import take_feeds
from scoring_service.engine.packed.reservation import Need, Room
from scoring_service.engine.packed.running_calls import RunningCalls
from scoring_service.engine.packed.scheduler import Offer, prefill_budget, share
from scoring_service.engine.packed.segments import Segment
from scoring_service.engine.packed.settings import PackedSettings
from scoring_service.engine.packed.step_plan import StepPlan
from scoring_service.engine.packed.store import SegmentStore
from scoring_service.engine.page_budget import LEAST_STEP
from scoring_service.engine.weights import ModelWeights
from scoring_service.peak_memory import answer_limit

OnBug = Callable[[CallRun, Exception], list[CallEvent]]
"""Ends a call that cannot be planned."""


class Planner:
    """Chooses among the calls that have credit, in the order of `scheduler.share`."""

    def __init__(
        self,
        calls: RunningCalls,
        store: SegmentStore,
        room: Room,
        settings: PackedSettings,
        on_bug: OnBug,
    ) -> None:
        self._calls = calls
        self._store = store
        self._room = room
        self._settings = settings
        self._on_bug = on_bug
        self._heeds_claims = True

    def next(self, events: list[CallEvent]) -> StepPlan:
        """A plan on the weights of the most urgent calls; among several, by turns.

        Args:
            events: what is to be told of calls that cannot be planned is added.
        """
        # Where nothing goes on, nothing becomes free that could be waited for.
        for self._heeds_claims in (True, False):
            for weights in self._weights_by_turns():
                plan = self._plan_on(weights, events)
                if not plan.is_empty:
                    return plan
            if self._first_waiting() is None:
                break
        return StepPlan()

    def _weights_by_turns(self) -> list[ModelWeights | None]:
        """Those that calls run on, most urgent calls first, then those that waited longest."""
        found: dict[ModelWeights | None, tuple[float, float]] = {}
        for run in self._calls.by_id.values():
            if run.credit > 0:
                urgency, since = found.get(run.weights, (math.inf, math.inf))
                urgency = min(urgency, -run.call.priority)
                found[run.weights] = urgency, min(since, run.waiting_since)
        return sorted(found, key=lambda weights: found[weights])

    def _plan_on(self, weights: ModelWeights | None, events: list[CallEvent]) -> StepPlan:
        # In the order of `scheduler.share`, because who is first asked gets the pages.
        running = self._calls.by_id.values()
        ready = sorted(
            (run for run in running if run.credit > 0 and run.weights is weights),
            key=lambda run: run.place,
        )
        # One that is alone and has no room waits for what the others hold.
        parts = [[run] for run in ready if run.alone]
        for part in [*parts, [run for run in ready if not run.alone]]:
            plan = self._plan_of(part, weights, events)
            if not plan.is_empty:
                now = time.monotonic()
                for run in running:
                    if run.weights is weights:
                        run.waiting_since = now
                return plan
        return StepPlan()

    def _plan_of(
        self, ready: list[CallRun], weights: ModelWeights | None, events: list[CallEvent]
    ) -> StepPlan:
        max_tokens = max(LEAST_STEP, self._settings.max_batch_tokens)
        running = self._calls.by_id.values()
        first = self._first_waiting()
        self._claim_for(first)
        # A token is left to scoring and prompts: with as many samples as tokens they would starve.
        feeds = take_feeds(
            ready,
            running,
            self._store,
            self._room,
            max_tokens - 1,
            on_bug=lambda run, error: events.extend(self._on_bug(run, error)),
        )
        ready = [run for run in ready if run.call.call_id in self._calls.by_id]
        budget = prefill_budget(max_tokens, len(feeds), self._settings.chunk_size)
        offers = []
        for run in ready:
            self._room.asks_first = first is None or run is first or run.place < first.place
            try:
                self._fill(run, budget)
            except Exception as error:  # noqa: BLE001 - a bug ends the call it met, not the worker
                events.extend(self._on_bug(run, error))
                feeds = [feed for feed in feeds if feed[0] is not run]
                first = self._first_waiting()
                self._claim_for(first)
                continue
            if run is first or (run.waits_for is not None and self._room.asks_first):
                first = self._first_waiting()
                self._claim_for(first)
            sizes = _leading_sizes(run, budget)
            if sizes:
                call = run.call
                offers.append(Offer(call.call_id, call.priority, run.served, call.deadline, sizes))
        units = self._take_units(share(offers, budget)) if budget else []
        return StepPlan(weights, units, feeds, _distinct([u.segment for _, u in units]))

    def _fill(self, run: CallRun, budget: int) -> None:
        """Lets a call begin what there is room for, and notes what it waits for."""
        self._room.refused = None
        run.fill(budget)
        run.waits_for = self._room.refused if run.is_waiting else None

    def _first_waiting(self) -> CallRun | None:
        """Of the calls that wait for room with nothing under way, whichever weights they run on."""
        waiting = [
            r for r in self._calls.by_id.values() if r.waits_for is not None and r.credit > 0
        ]
        return min(waiting, key=lambda run: run.place, default=None)

    def _claim_for(self, first: CallRun | None) -> None:
        need = None if first is None else first.waits_for
        self._room.claim = None
        if first is not None and need is not None and self._heeds_claims and self._may_be_had(need):
            self._room.claim = need, first.call.priority

    def _may_be_had(self, need: Need) -> bool:
        """Whether it fits beside what calls hold whose readers take nothing."""
        ends = [
            completion.end
            for run in self._calls.by_id.values()
            if run.credit <= 0
            for completion in run.completions
        ]
        held = {id(segment): segment for end in ends for segment in end.chain()}
        return need.pages <= self._store.pages - sum(len(s.pages) for s in held.values())

    def _take_units(self, shares: dict[int, int]) -> list[tuple[CallRun, Unit]]:
        """The leading units of each call, as long as the step has room for their results."""
        units: list[tuple[CallRun, Unit]] = []
        room = answer_limit(self._settings.max_batch_tokens)
        sharing = self._calls.sharing()
        for call_id, count in shares.items():
            run = self._calls.by_id[call_id]
            for _ in range(count):
                room -= run.units[0].reply_bytes
                if units and room < 0:
                    break
                unit = run.units.popleft()
                if unit.sample is not None:
                    unit.sample.begun = True
                self._calls.serve(run, unit.tokens, sharing)
                units.append((run, unit))
        return units


def _distinct(segments: Sequence[Segment | None]) -> list[Segment]:
    """Each segment that is not computed yet, once."""
    return list({id(s): s for s in segments if s is not None and not s.computed}.values())


def _leading_sizes(run: CallRun, budget: int) -> list[int]:
    """Sizes of the units that could join a step of so many tokens, and one more.

    What they would add to the reply stays within the call's credit, but for the first.
    """
    sizes: list[int] = []
    tokens = reply = 0
    for unit in run.units:
        reply += unit.reply_bytes
        if sizes and reply > run.credit:
            break
        sizes.append(unit.tokens)
        tokens += unit.tokens
        if tokens > budget:
            break
    return sizes
