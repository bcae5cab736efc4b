"""Makes the plan of the next step: whose weights, whose samples, which segments of which calls."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from scoring_service.engine.events import CallEvent
from scoring_service.engine.packed.call_run import CallRun, Unit
from scoring_service.engine.packed.decoding import take_feeds
from scoring_service.engine.packed.reservation import Room
from scoring_service.engine.packed.running_calls import RunningCalls
from scoring_service.engine.packed.scheduler import Offer, prefill_budget, share
from scoring_service.engine.packed.segments import Segment
from scoring_service.engine.packed.settings import PackedSettings
from scoring_service.engine.packed.step_plan import StepPlan
from scoring_service.engine.packed.store import SegmentStore
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
        self._last_weights: ModelWeights | None = None
        """What the last step ran on."""

    def next(self, events: list[CallEvent]) -> StepPlan:
        """A plan on weights that did not have the last step, if others have work too.

        Args:
            events: what is to be told of calls that cannot be planned is added.
        """
        for weights in self._weights_by_turns():
            plan = self._plan_on(weights, events)
            if not plan.is_empty:
                self._last_weights = weights
                return plan
        return StepPlan()

    def _weights_by_turns(self) -> list[ModelWeights | None]:
        """Those that calls run on, most urgent calls first, then those that waited longest."""
        found: dict[ModelWeights | None, int] = {}
        for run in self._calls.by_id.values():
            if run.credit > 0:
                found[run.weights] = max(
                    found.get(run.weights, run.call.priority), run.call.priority
                )
        return sorted(found, key=lambda weights: (-found[weights], weights is self._last_weights))

    def _plan_on(self, weights: ModelWeights | None, events: list[CallEvent]) -> StepPlan:
        # In the order of `scheduler.share`, because who is first asked gets the pages.
        ready = sorted(
            (
                run
                for run in self._calls.by_id.values()
                if run.credit > 0 and run.weights is weights
            ),
            key=lambda run: (-run.call.priority, run.served),
        )
        for run in ready:
            if run.alone:
                plan = self._plan_of([run], weights, events)
                if not plan.is_empty:
                    return plan
        # One that is alone and has no room waits for what the others hold.
        others = [run for run in ready if not run.alone]
        return self._plan_of(others, weights, events)

    def _plan_of(
        self, ready: list[CallRun], weights: ModelWeights | None, events: list[CallEvent]
    ) -> StepPlan:
        max_tokens = self._settings.max_batch_tokens
        running = self._calls.by_id.values()
        # A token is left to scoring and prompts: with as many samples as tokens they would starve.
        feeds = take_feeds(ready, running, self._store, self._room, max(1, max_tokens - 1))
        budget = prefill_budget(max_tokens, len(feeds), self._settings.chunk_size)
        offers = []
        claimed = 0
        for run in ready:
            self._room.refused = 0
            try:
                run.fill(budget)
            except Exception as error:  # noqa: BLE001 - a bug ends the call it met, not the worker
                events.extend(self._on_bug(run, error))
                feeds = [feed for feed in feeds if feed[0] is not run]
                continue
            if run.is_waiting and not claimed:
                claimed = self._room.refused
            sizes = _leading_sizes(run, budget)
            if sizes:
                call = run.call
                offers.append(Offer(call.call_id, call.priority, run.served, call.deadline, sizes))
        units = self._take_units(share(offers, budget)) if budget else []
        plan = StepPlan(weights, units, feeds, _distinct([u.segment for _, u in units]))
        # Where nothing goes on, nothing becomes free that could be waited for.
        self._room.claimed = 0 if plan.is_empty else claimed
        return plan

    def _take_units(self, shares: dict[int, int]) -> list[tuple[CallRun, Unit]]:
        """The leading units of each call, as long as the step has room for their results."""
        units: list[tuple[CallRun, Unit]] = []
        room = answer_limit(self._settings.max_batch_tokens)
        for call_id, count in shares.items():
            run = self._calls.by_id[call_id]
            for _ in range(count):
                room -= run.units[0].reply_bytes
                if units and room < 0:
                    break
                unit = run.units.popleft()
                if unit.sample is not None:
                    unit.sample.begun = True
                run.served += unit.tokens
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
