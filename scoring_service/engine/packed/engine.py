"""The packed engine: calls in, steps over many of them at once, events out."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from scoring_service.engine.causal_model import CausalModel
from scoring_service.engine.events import (
    CallEvent,
    CallFailed,
    CallFinished,
    CallStarted,
    ItemFailed,
    ScoreSlice,
)
from scoring_service.engine.memory import is_out_of_memory
from scoring_service.engine.packed.body import Feed, PackedBody, Step
from scoring_service.engine.packed.call_run import CallRun, Unit
from scoring_service.engine.packed.expansion import Expansion
from scoring_service.engine.packed.head_jobs import draw_samples, sample_kind, score_rows
from scoring_service.engine.packed.pages import PagePool
from scoring_service.engine.packed.reservation import Room
from scoring_service.engine.packed.sample_run import SampleRun
from scoring_service.engine.packed.scheduler import Offer, prefill_budget, share
from scoring_service.engine.packed.score_run import CompletionRun, ScoreRows
from scoring_service.engine.packed.segments import Segment
from scoring_service.engine.packed.store import CacheCounters, SegmentStore
from scoring_service.engine.page_budget import MAX_SAMPLES
from scoring_service.engine.tokenizer import TextCodec
from scoring_service.engine.weights import ModelWeights
from scoring_service.errors import Fault, Reason
from scoring_service.peak_memory import answer_limit
from scoring_service.types import Call, ScoreCall

LogBug = Callable[[int, BaseException], None]


@dataclass(frozen=True, slots=True)
class PackedSettings:
    """How steps are made."""

    chunk_size: int
    """Tokens between seams."""
    max_batch_tokens: int
    """Tokens of a step, except that a segment is never cut."""
    max_samples: int = MAX_SAMPLES
    """Samples under way at once."""


@dataclass(slots=True)
class _Plan:
    """What one step does."""

    units: list[tuple[CallRun, Unit]]
    feeds: list[tuple[CallRun, SampleRun, Feed]]
    segments: list[Segment]
    """Those of the units that are not computed yet, once each."""


class PackedEngine:
    """Takes calls, advances all of them together, one step at a time.

    A step runs decoded tokens of every sample and, under the budget, segments of calls in the
    order of `scheduler.share`; then the head over the rows that they yield.
    """

    def __init__(
        self,
        model: CausalModel,
        pool: PagePool,
        settings: PackedSettings,
        eos_ids: tuple[int, ...],
        codec: TextCodec | None,
        root_key: bytes,
        log_bug: LogBug,
    ) -> None:
        self._model = model
        self._settings = settings
        self._log_bug = log_bug
        self._store = SegmentStore(pool, settings.chunk_size)
        self._room = Room(self._store)
        self._body = PackedBody(model, pool)
        self._expansion = Expansion(self._store, self._room, eos_ids, codec, settings.max_samples)
        self._calls: dict[int, CallRun] = {}
        self._root_key = root_key
        self._last_weights: ModelWeights | None = None
        """What the last step ran on."""
        self._stalled = False
        self.is_sound = True
        """False once the host's memory ran out: oneDNN remembers what it could not create then."""

    @property
    def cache(self) -> CacheCounters:
        """What the prefix cache did so far."""
        return self._store.counters

    @property
    def free_pages(self) -> int:
        """Pages that no call holds."""
        return self._store.available

    def gauges(self) -> dict[str, int]:
        """What a heartbeat tells of this engine."""
        return {
            "running": len(self._calls),
            "pages": self._store.pages,
            "free_pages": self._store.available,
            "looked_up_tokens": self.cache.looked_up_tokens,
            "hit_tokens": self.cache.hit_tokens,
        }

    def flush_cache(self) -> int:
        """Forgets prompts that no call holds; how many pages they had."""
        return self._store.flush()

    def submit(self, call: Call, weights: ModelWeights | None = None, alone: bool = False) -> None:
        """Adds a call.

        Args:
            call: to be computed.
            weights: with these; None = those that were loaded.
            alone: no other call joins its steps.
        """
        count = _PromptCounter()
        root_key = self._root_key if weights is None else weights.cache_key
        if isinstance(call, ScoreCall):
            to_come = self._expansion.score(call, count, root_key)
        else:
            to_come = self._expansion.sample(call, count, root_key)
        run = CallRun(call, to_come, self._least_served(), weights, alone)
        count.run = run
        self._calls[call.call_id] = run
        self._stalled = False

    def cancel(self, call_id: int) -> None:
        """Forgets a call and frees what it holds."""
        run = self._calls.pop(call_id, None)
        if run is None:
            return
        self._stalled = False
        run.to_come.close()
        for completion in list(run.completions):
            self._end_completion(run, completion)
        for sample in list(run.samples):
            self._end_sample(run, sample)

    def add_credit(self, call_id: int, size: int) -> None:
        """The call's reader took this many bytes."""
        if (run := self._calls.get(call_id)) is not None:
            run.credit += size
            self._stalled = False

    @property
    def can_step(self) -> bool:
        """Whether a step would do something."""
        return not self._stalled and any(run.credit > 0 for run in self._calls.values())

    def step(self) -> list[CallEvent]:
        """Computes a step; returns what there is to send."""
        began = time.monotonic()
        events: list[CallEvent] = []
        self._expire(began, events)
        plan = self._next_plan(events)
        if not plan.units and not plan.feeds:
            # Whatever could go on waits for a reader or for room that only a reader can make.
            before = len(events)
            events.extend(self._finish())
            self._stalled = len(events) == before
            return events
        for run in _calls_of(plan):
            if run.started is None:
                run.started = began
                events.append(CallStarted(run.call.call_id))
        try:
            events.extend(self._compute(plan))
        except Exception as error:  # noqa: BLE001 - a bug ends the calls it met, not the worker
            if is_out_of_memory(error):
                self.is_sound = self._model.device.type == "cuda"
                torch.cuda.empty_cache()
                fault = Fault(Reason.OUT_OF_MEMORY, "the device ran out of memory for this step")
                events.extend(self._end_calls(plan, fault))
            else:
                events.extend(self._abort(plan, error))
        seconds = time.monotonic() - began
        self._account(plan, seconds)
        events.extend(self._finish())
        return events

    def _least_served(self) -> float:
        """What a newcomer counts as served: as much as whoever was served least."""
        return min((run.served for run in self._calls.values()), default=0.0)

    def _expire(self, now: float, events: list[CallEvent]) -> None:
        """Drops calls whose callers no longer wait, before they cost anything more."""
        for call_id, run in list(self._calls.items()):
            if run.call.deadline < now:
                self.cancel(call_id)
                message = "the deadline passed before the call was finished"
                events.append(CallFailed(call_id, Fault(Reason.DEADLINE_EXCEEDED, message)))

    def _next_plan(self, events: list[CallEvent]) -> _Plan:
        """A step's plan, on weights that did not have the last one if others have work too."""
        plan = _Plan([], [], [])
        for weights in self._weights_by_turns():
            self._model.use(weights)
            plan = self._plan(events, weights)
            if plan.units or plan.feeds:
                self._last_weights = weights
                break
        return plan

    def _weights_by_turns(self) -> list[ModelWeights | None]:
        """Those that calls run on, most urgent calls first, then those that waited longest."""
        found: dict[ModelWeights | None, int] = {}
        for run in self._calls.values():
            if run.credit > 0:
                found[run.weights] = max(
                    found.get(run.weights, run.call.priority), run.call.priority
                )
        return sorted(found, key=lambda weights: (-found[weights], weights is self._last_weights))

    def _plan(self, events: list[CallEvent], weights: ModelWeights | None) -> _Plan:
        # In the order of `scheduler.share`, because who is first asked gets the pages.
        ready = sorted(
            (run for run in self._calls.values() if run.credit > 0 and run.weights is weights),
            key=lambda run: (-run.call.priority, run.served),
        )
        for run in ready:
            if run.alone:
                plan = self._plan_of([run], events)
                if plan.units or plan.feeds:
                    return plan
        # One that is alone and has no room waits for what the others hold.
        others = [run for run in ready if not run.alone]
        return self._plan_of(others, events)

    def _plan_of(self, ready: list[CallRun], events: list[CallEvent]) -> _Plan:
        feeds = self._take_feeds(ready)
        budget = prefill_budget(
            self._settings.max_batch_tokens, len(feeds), self._settings.chunk_size
        )
        offers = []
        for run in ready:
            before = len(run.units)
            try:
                run.fill(budget)
            except Exception as error:  # noqa: BLE001 - a bug ends the call it met, not the worker
                events.append(self._abort_call(run, error))
                feeds = [feed for feed in feeds if feed[0] is not run]
                continue
            for unit in list(run.units)[before:]:
                self._begin(run, unit)
            sizes = _leading_sizes(run, budget)
            if sizes:
                offers.append(
                    Offer(run.call.call_id, run.call.priority, run.served, run.call.deadline, sizes)
                )
        taken = share(offers, budget) if budget else {}
        units: list[tuple[CallRun, Unit]] = []
        room = answer_limit(self._settings.max_batch_tokens)
        for call_id, count in taken.items():
            run = self._calls[call_id]
            for _ in range(count):
                room -= run.units[0].reply_bytes
                if units and room < 0:
                    break
                unit = run.units.popleft()
                if unit.sample is not None:
                    unit.sample.begun = True
                run.served += unit.tokens
                units.append((run, unit))
        return _Plan(units, feeds, _distinct([u.segment for _, u in units if u.segment]))

    def _abort_call(self, run: CallRun, error: Exception) -> CallEvent:
        """Ends a call that cannot be planned."""
        self._log_bug(run.call.call_id, error)
        self.cancel(run.call.call_id)
        fault = Fault(Reason.INTERNAL_ERROR, f"a bug in the server: {type(error).__name__}")
        return CallFailed(run.call.call_id, fault)

    def _begin(self, run: CallRun, unit: Unit) -> None:
        """Notes what a new unit belongs to."""
        if unit.sample is not None:
            run.samples.append(unit.sample)
        if unit.completion is not None and unit.completion not in run.completions:
            run.completions.add(unit.completion)
            tokens = run.usage.completion_tokens + len(unit.completion.task.token_ids)
            run.usage = replace(run.usage, completion_tokens=tokens)

    def _take_feeds(self, ready: Sequence[CallRun]) -> list[tuple[CallRun, SampleRun, Feed]]:
        """The next tokens of samples, oldest first; samples give way where pages run out."""
        waiting = [
            (run, sample)
            for run in ready
            for sample in run.samples
            if sample.begun and sample.token_ids
        ]
        waiting.sort(key=lambda pair: pair[1].order)
        feeds: list[tuple[CallRun, SampleRun, Feed]] = []
        left = self._settings.max_batch_tokens
        for run, sample in waiting:
            if left == 0:
                break
            if sample.pages_missing and not self._make_room(sample):
                continue
            new = sample.feeds(left)
            left -= len(new)
            run.served += len(new)
            feeds.extend((run, sample, feed) for feed in new)
        return feeds

    def _make_room(self, sample: SampleRun) -> bool:
        """Takes the pages that a sample misses, from younger samples if it must."""
        missing = sample.pages_missing
        everyone = [other for run in self._calls.values() for other in run.samples]
        younger = sorted(
            (other for other in everyone if other.order > sample.order and other.pages),
            key=lambda other: -other.order,
        )
        room = self._room.free + sum(len(other.pages) for other in younger)
        if missing > room:
            return False
        for other in younger:
            if missing <= self._room.free:
                break
            self._store.give_back(other.give_way())
        sample.add_pages(self._store.take(missing))
        return True

    def _compute(self, plan: _Plan) -> list[CallEvent]:
        segments = plan.segments
        feeds = [feed for _, _, feed in plan.feeds]
        events: list[CallEvent] = []
        width = 0
        states: Tensor | None = None
        starts: dict[int, int] = {}
        if segments or feeds:
            found = self._body.run(Step(tuple(segments), tuple(feeds)))
            states, starts, width = found.states_T_H, found.starts, len(found.states_T_H)
            for segment in segments:
                segment.computed = True
                if segment.kept:
                    last = starts[id(segment)] + len(segment.token_ids) - 1
                    segment.end_state = states[last].clone()
        table = _StateTable(width, starts)
        scored = self._score_rows(plan, table)
        drawn = self._draw_places(plan, table, width - len(feeds))
        if not scored and not drawn:
            return events
        all_states = table.join(states)
        if scored:
            events.extend(self._answer_scores(all_states, scored))
        if drawn:
            events.extend(self._answer_draws(all_states, drawn))
        return events

    def _score_rows(self, plan: _Plan, table: _StateTable) -> list[ScoreRows]:
        wanted = []
        for _, unit in plan.units:
            run = unit.completion
            if run is None or run not in self._calls[run.call.call_id].completions:
                continue
            if unit.segment is None or unit.segment.start == run.prompt_end.stop:
                rows = run.rows_of(None)
                if len(rows):
                    wanted.append(ScoreRows(run, rows, [table.end_of(run.prompt_end)]))
            if unit.segment is not None:
                rows = run.rows_of(unit.segment)
                if len(rows):
                    # Row i comes from the state one position earlier.
                    offset = table.start_of(unit.segment) - 1
                    first = unit.segment.start - run.prompt_end.stop
                    wanted.append(ScoreRows(run, rows, [offset + int(r) - first for r in rows]))
        wanted.sort(key=lambda rows: (rows.run.call.call_id, rows.run.group.processing_index))
        return wanted

    def _draw_places(
        self, plan: _Plan, table: _StateTable, first_feed: int
    ) -> list[tuple[SampleRun, int]]:
        places = {}
        for _, unit in plan.units:
            if unit.sample is not None and unit.sample.can_draw:
                places[unit.sample] = table.end_of(unit.sample.prompt_end)
        for place, (_, sample, _) in enumerate(plan.feeds, first_feed):
            if sample.can_draw:
                places[sample] = place  # of its last token
        return sorted(places.items(), key=lambda pair: sample_kind(pair[0]))

    def _answer_scores(self, states: Tensor, wanted: list[ScoreRows]) -> list[CallEvent]:
        slices: list[ScoreSlice] = []
        version = self._model.weight_version
        touched: dict[CompletionRun, None] = {}
        failed: dict[CompletionRun, Fault] = {}
        for run, rows, found in score_rows(self._model.head, states, wanted, self._model.kernels):
            if run in failed:
                continue
            if isinstance(found, Fault):
                failed[run] = found
                continue
            touched[run] = None
            call = self._calls[run.call.call_id]
            call.usage = replace(call.usage, head_rows=call.usage.head_rows + found.rows)
            slices.extend(run.push(rows, found, version))
        for run in touched:
            if run not in failed:
                slices.extend(run.flush(version))
        for piece in slices:
            self._calls[piece.call_id].credit -= piece.size
        events: list[CallEvent] = [*slices]
        for run in touched:
            if run.done:
                self._end_completion(self._calls[run.call.call_id], run)
        for run, fault in failed.items():
            events.append(self._fail_completion(run, fault))
        return events

    def _answer_draws(self, states: Tensor, wanted: list[tuple[SampleRun, int]]) -> list[CallEvent]:
        events: list[CallEvent] = []
        for sample, found in draw_samples(self._model.head, states, wanted, self._model.kernels):
            run = self._calls[sample.call.call_id]
            if isinstance(found, Fault):
                events.append(self._fail_sample(run, sample, found))
                continue
            run.usage = replace(
                run.usage,
                head_rows=run.usage.head_rows + 1,
                sampled_tokens=run.usage.sampled_tokens + 1,
            )
            piece = sample.push(found, self._model.weight_version)
            if piece is not None:
                run.credit -= piece.size
                events.append(piece)
                if piece.last:
                    self._end_sample(run, sample)
        return events

    def _end_completion(self, run: CallRun, completion: CompletionRun) -> None:
        run.completions.discard(completion)
        self._store.release(completion.end)
        if completion.reservation is not None:
            self._room.unuse(completion.reservation)

    def _end_sample(self, run: CallRun, sample: SampleRun) -> None:
        run.samples.remove(sample)
        self._store.give_back(sample.give_way())
        self._store.release(sample.prompt_end)
        self._room.remove_sample(sample)
        self._expansion.sample_ended()

    def _fail_completion(self, completion: CompletionRun, fault: Fault) -> CallEvent:
        run = self._calls[completion.call.call_id]
        run.drop(lambda unit: unit.completion is completion)
        self._end_completion(run, completion)
        return ItemFailed(run.call.call_id, completion.group.index, completion.task.index, fault)

    def _fail_sample(self, run: CallRun, sample: SampleRun, fault: Fault) -> CallEvent:
        run.drop(lambda unit: unit.sample is sample)
        self._end_sample(run, sample)
        return ItemFailed(run.call.call_id, sample.task.index, sample.index, fault)

    def _end_calls(self, plan: _Plan, fault: Fault) -> list[CallEvent]:
        """Ends every call that had a part in a step that could not be computed.

        Whole calls, because what is to come of them may stand on what the step did not compute.
        """
        calls = _calls_of(plan)
        for run in calls:
            self.cancel(run.call.call_id)
        in_company = len(calls) > 1  # whose fault it is shows when each is computed alone
        return [CallFailed(run.call.call_id, fault, in_company) for run in calls]

    def _abort(self, plan: _Plan, error: Exception) -> list[CallEvent]:
        for run in _calls_of(plan):
            self._log_bug(run.call.call_id, error)
        fault = Fault(Reason.INTERNAL_ERROR, f"a bug in the server: {type(error).__name__}")
        return self._end_calls(plan, fault)

    def _account(self, plan: _Plan, seconds: float) -> None:
        """Shares a step's tokens and time among the calls that it served."""
        left = set(map(id, plan.segments))
        tokens: dict[int, int] = {}
        weights: dict[int, int] = {}
        for run, unit in plan.units:
            computed = 0
            if unit.segment is not None and id(unit.segment) in left:
                left.remove(id(unit.segment))
                computed = len(unit.segment.token_ids)
            tokens[run.call.call_id] = tokens.get(run.call.call_id, 0) + computed
            weights[run.call.call_id] = weights.get(run.call.call_id, 0) + max(1, computed)
        for run, _, _ in plan.feeds:
            tokens[run.call.call_id] = tokens.get(run.call.call_id, 0) + 1
            weights[run.call.call_id] = weights.get(run.call.call_id, 0) + 1
        total = sum(weights.values())
        for call_id, weight in weights.items():
            if (found := self._calls.get(call_id)) is not None:
                found.usage = replace(
                    found.usage,
                    computed_tokens=found.usage.computed_tokens + tokens[call_id],
                    compute_seconds=found.usage.compute_seconds + seconds * weight / total,
                )

    def _finish(self) -> list[CallEvent]:
        events: list[CallEvent] = []
        for call_id, run in list(self._calls.items()):
            if run.is_finished:
                del self._calls[call_id]
                started = run.submitted if run.started is None else run.started
                usage = replace(run.usage, queue_seconds=started - run.submitted)
                events.append(CallFinished(call_id, usage))
        return events


class _PromptCounter:
    """Counts a call's prompts as they begin."""

    run: CallRun

    def __call__(self, chain: list[Segment]) -> None:
        usage = self.run.usage
        self.run.usage = replace(
            usage,
            prompt_tokens=usage.prompt_tokens + chain[-1].stop,
            cached_tokens=usage.cached_tokens
            + sum(len(segment.token_ids) for segment in chain if segment.computed),
        )


class _StateTable:
    """Where states are: rows of the step, and behind them ends that earlier steps computed."""

    def __init__(self, width: int, starts: dict[int, int]) -> None:
        self._width = width
        self._starts = starts
        self._kept: list[Tensor] = []
        self._places: dict[int, int] = {}

    def start_of(self, segment: Segment) -> int:
        """Of a segment of this step."""
        return self._starts[id(segment)]

    def end_of(self, segment: Segment) -> int:
        """Of the last token of a segment of this or an earlier step."""
        if id(segment) in self._starts:
            return self._starts[id(segment)] + len(segment.token_ids) - 1
        if id(segment) not in self._places:
            if segment.end_state is None:
                raise RuntimeError("a row was asked of a segment that is not computed")
            self._places[id(segment)] = self._width + len(self._kept)
            self._kept.append(segment.end_state)
        return self._places[id(segment)]

    def join(self, states: Tensor | None) -> Tensor:
        """The whole table, [S, H]."""
        parts = [] if states is None else [states]
        if self._kept:
            parts.append(torch.stack(self._kept))
        return parts[0] if len(parts) == 1 else torch.cat(parts)


def _calls_of(plan: _Plan) -> list[CallRun]:
    runs = [run for run, _ in plan.units] + [run for run, _, _ in plan.feeds]
    return list({run.call.call_id: run for run in runs}.values())


def _distinct(segments: Sequence[Segment]) -> list[Segment]:
    """Each segment that is not computed yet, once."""
    return list({id(s): s for s in segments if not s.computed}.values())


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
