"""Makes the plan of the next step: whose weights, whose samples, which segments of which calls."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterable, Iterator, Sequence

from scoring_service.engine.attention.pages import pages_for
from scoring_service.engine.attention.segments import Segment, SegmentRange
from scoring_service.engine.attention.store import SegmentStore
from scoring_service.engine.events import CallEvent
from scoring_service.engine.machine.page_budget import MIN_STEP
from scoring_service.engine.model.context_cost import ContextCost
from scoring_service.engine.packed.calls.call_run import CallRun, Unit
from scoring_service.engine.packed.calls.reservation import Room
from scoring_service.engine.packed.calls.running_calls import RunningCalls
from scoring_service.engine.packed.planning.admission import Admission
from scoring_service.engine.packed.planning.decoding import StepSamples
from scoring_service.engine.packed.planning.scheduler import (
    Offer,
    Place,
    Share,
    StepTokens,
    place,
    share,
)
from scoring_service.engine.packed.planning.step_plan import StepPlan
from scoring_service.engine.packed.planning.waiting_line import WaitingLine
from scoring_service.engine.packed.settings import PackedSettings
from scoring_service.engine.weights.model_weights import ModelWeights
from scoring_service.peak_memory import answer_limit
from scoring_service.types import SampleCall

_OFFERED = 4
"""Of as many times a step's tokens segments are chosen: those that come later would not fill it."""

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

    def next(self, events: list[CallEvent]) -> StepPlan:
        """A plan on the weights of the most urgent calls; among several, by turns.

        Args:
            events: what is to be told of calls that cannot be planned is added.
        """
        # Where nothing goes on, nothing becomes free that could be waited for.
        for heeds_claims in (True, False):
            # Who is first and has no room waits for what the others hold.
            for group in _step_groups(self._calls.by_id.values()):
                plan = self._plan_of(group, heeds_claims, events)
                if not plan.is_empty:
                    self._note_turn(group)
                    return plan
            if WaitingLine(self._calls.by_id, self._place).first() is None:
                break
        return StepPlan()

    def _note_turn(self, group: list[CallRun]) -> None:
        """Who shared the step waits from now on, and so does who could not for want of credit."""
        now, served = time.monotonic(), set(map(id, group))
        for run in self._calls.by_id.values():
            if id(run) in served or (run.weights is group[0].weights and run.credit <= 0):
                run.waiting_since = now

    def _plan_of(
        self, group: list[CallRun], heeds_claims: bool, events: list[CallEvent]
    ) -> StepPlan:
        """A step of calls on the same weights.

        Args:
            group: these calls.
            heeds_claims: as of `Admission`.
            events: as of `next`.
        """
        calls = self._calls.by_id
        # In the order of `scheduler.share`, because who is first asked gets the pages.
        ready = sorted(group, key=self._place)
        admission = Admission(calls, self._place, self._store, self._room, heeds_claims)
        samples = StepSamples(
            ready,
            calls.values(),
            self._room,
            self._settings.max_samples,
            on_bug=lambda run, error: events.extend(self._on_bug(run, error)),
        )
        tokens = StepTokens(
            max(MIN_STEP, self._settings.max_batch_tokens),
            self._settings.beside_samples or self._settings.chunk_size,
        )
        shares: dict[int, Share] = {}
        for priority, band in _bands(ready, samples.priorities):
            if priority is not None:
                _take_samples(samples, priority, band, tokens)
            found = self._joining(band, samples, tokens, admission, events)
            tokens.joined += sum(part.cost for part in found.values())
            shares |= found
        return StepPlan(group[0].weights, *self._take_units(shares), samples.decode_tokens)

    def _joining(
        self,
        band: Sequence[CallRun],
        samples: StepSamples,
        tokens: StepTokens,
        admission: Admission,
        events: list[CallEvent],
    ) -> dict[int, Share]:
        """What of scoring and prompts of these calls joins the step, by call id."""
        callers = samples.callers
        cuts = self._settings.cuts if tokens.rows else None
        budget = beside = tokens.for_prefill(samples.to_come)
        whole = bool(callers) and self._all_wait_for_prompts(callers)
        if whole:
            budget = tokens.left
        offers = self._offers(band, budget, admission, samples, events)
        if whole and callers <= {self._calls.by_id[offer.call_id].whole for offer in offers}:
            # Nobody waits for a step to be short: each token counts the same.
            cuts = cuts and ContextCost()
        else:
            budget = beside
        return share(offers, budget, self._settings.turn_tokens, cuts) if budget else {}

    def _offers(
        self,
        band: Iterable[CallRun],
        budget: int,
        admission: Admission,
        samples: StepSamples,
        events: list[CallEvent],
    ) -> list[Offer]:
        """What calls could compute of scoring and prompts, as far as they have room for it."""
        offers: list[Offer] = []
        offered = 0
        for run in band:
            call = run.call
            if offered >= _OFFERED * budget:
                break
            if call.call_id not in self._calls.by_id or admission.is_hopeless(run):
                continue
            try:
                admission.ask(run, budget)
            except Exception as error:  # noqa: BLE001 - a bug ends the call it met, not the worker
                events.extend(self._on_bug(run, error))
                samples.drop(run)
                admission.leave()
                continue
            if sizes := _leading_sizes(run, budget):
                offers.append(
                    Offer(
                        call_id=call.call_id,
                        priority=call.priority,
                        served=run.served,
                        left=run.left,
                        deadline=call.deadline,
                        sizes=sizes,
                        positions=[
                            unit.position for unit in itertools.islice(run.units, len(sizes))
                        ],
                    )
                )
                offered += sum(sizes)
        return offers

    def _all_wait_for_prompts(self, callers: set[int]) -> bool:
        """Whether each of these calls, whose samples go on, has prompts of its own to compute.

        Then steps are not kept short for them: a call ends with its last sample, and is done much
        sooner when all are drawn together.

        Args:
            callers: as of `CallRun.whole`.
        """
        waiting = {
            run.whole
            for run in self._calls.by_id.values()
            if isinstance(run.call, SampleCall) and (run.units or run.items_to_come)
        }
        return callers <= waiting

    def _place(self, run: CallRun) -> Place:
        call, turn = run.call, self._settings.turn_tokens
        return place(call.priority, run.served, run.left, call.deadline, turn)

    def _take_units(
        self, shares: dict[int, Share]
    ) -> tuple[list[tuple[CallRun, Unit]], list[SegmentRange]]:
        """The leading units of each call, as long as the step has room for their results."""
        units: list[tuple[CallRun, Unit]] = []
        pieces: dict[int, SegmentRange] = {}
        room = answer_limit(self._settings.max_batch_tokens)
        sharing = self._calls.sharing()
        for call_id, part in shares.items():
            run = self._calls.by_id[call_id]
            for tokens in part.tokens:
                unit = run.units[0]
                room -= unit.reply_bytes
                if units and room < 0:
                    break
                if tokens < unit.tokens and not self._can_cut(unit):
                    if units:
                        break
                    tokens = unit.tokens
                self._calls.serve(run, tokens, sharing)
                units.append((run, unit))
                if unit.segment is not None and not unit.segment.computed:
                    _add_piece(pieces, unit.segment, tokens)
                if tokens == unit.tokens:
                    run.left -= unit.left
                    run.units.popleft()
                    if unit.sample is not None:
                        unit.sample.begun = True
                else:
                    run.left -= tokens
        return units, list(pieces.values())

    def _can_cut(self, unit: Unit) -> bool:
        """Whether what is computed of a segment can be kept until the rest is."""
        segment = unit.segment
        if segment is None or len(segment.slots):
            return segment is not None
        if not self._room.lends(pages_for(len(segment.token_ids))):
            return False
        self._store.lend(segment)
        return True


def _bands(
    ready: Sequence[CallRun], priorities: Sequence[int]
) -> Iterator[tuple[int | None, list[CallRun]]]:
    """Calls by urgency: first what outranks all samples, then samples and what they outrank.

    Args:
        ready: calls, the most urgent first.
        priorities: of samples that may go on, descending.

    Yields:
        a priority of samples that go on before scoring and prompts of some calls, and these calls,
        down to the next such priority; None = none go on before them.
    """
    below = itertools.groupby(ready, lambda run: sum(p >= run.call.priority for p in priorities))
    for count, band in below:
        yield (priorities[count - 1] if count else None), list(band)


def _take_samples(
    samples: StepSamples, priority: int, band: Sequence[CallRun], tokens: StepTokens
) -> None:
    """Goes on with samples of a priority.

    Where some draw their next token, those that resume catch up within what may join these: all of
    it or, where scoring or prompts wait, half.
    """
    tokens.rows += samples.go_on(priority, tokens.for_samples())
    if not samples.any_draws:
        tokens.rows += samples.catch_up(tokens.for_samples())
        return
    budget = tokens.for_prefill(samples.to_come)
    shared = any(run.units or run.items_to_come for run in band)
    tokens.joined += samples.catch_up(budget // 2 if shared else budget)


def _step_groups(running: Iterable[CallRun]) -> list[list[CallRun]]:
    """Who may share a step: all that run on the same weights, but who is alone by itself.

    By priority; among equals who has waited longest: whoever is alone may last, and the others,
    with a sample among them, may last as well.
    """
    together: dict[ModelWeights | None, list[CallRun]] = {}
    groups = []
    for run in running:
        if run.credit <= 0:
            continue
        if run.alone:
            groups.append([run])
        else:
            together.setdefault(run.weights, []).append(run)
    return sorted(
        [*groups, *together.values()],
        key=lambda group: (
            -max(run.call.priority for run in group),
            min(run.waiting_since for run in group),
        ),
    )


def _add_piece(pieces: dict[int, SegmentRange], segment: Segment, tokens: int) -> None:
    """So many tokens more of a segment; of what several calls want of it the most."""
    stop = segment.done + tokens
    if (found := pieces.get(id(segment))) is None or found.stop < stop:
        pieces[id(segment)] = SegmentRange(segment, segment.done, stop)


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
