"""The packed engine: calls in, steps over many of them at once, events out."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch
from torch import Tensor

from scoring_service.engine.attention.pages import PagePool
from scoring_service.engine.attention.store import CacheCounters, SegmentStore
from scoring_service.engine.bugs import bug_message
from scoring_service.engine.events import CallEvent, CallStarted
from scoring_service.engine.machine.memory import is_lost, is_out_of_memory
from scoring_service.engine.model.causal_model import CausalModel
from scoring_service.engine.packed.accounting import PromptCounter, account
from scoring_service.engine.packed.calls.call_run import CallRun, items_of, tokens_of
from scoring_service.engine.packed.calls.expansion import Expansion
from scoring_service.engine.packed.calls.reservation import Room
from scoring_service.engine.packed.calls.running_calls import RunningCalls
from scoring_service.engine.packed.calls.sample_slots import SampleSlots
from scoring_service.engine.packed.planning.planner import Planner
from scoring_service.engine.packed.planning.step_plan import StepPlan
from scoring_service.engine.packed.settings import PackedSettings
from scoring_service.engine.packed.steps.answers import answer_draws, answer_scores
from scoring_service.engine.packed.steps.body import PackedBody, Step
from scoring_service.engine.packed.steps.decode_graphs import DecodeGraphs
from scoring_service.engine.packed.steps.state_table import StateTable
from scoring_service.engine.packed.steps.wanted import rows_to_score, samples_to_draw
from scoring_service.engine.text.tokenizer import TextCodec
from scoring_service.engine.weights.model_weights import ModelWeights
from scoring_service.errors import Fault, Reason
from scoring_service.types import Call, ScoreCall

LogBug = Callable[[Call, BaseException], None]


class PackedEngine:
    """Takes calls, advances all of them together, one step at a time.

    A step is planned (`planner`), runs through the model's body (`body`), and the rows that it
    yields through the head (`wanted`, `answers`); then it is put down to its calls (`accounting`).
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
        graphs: DecodeGraphs | None = None,
    ) -> None:
        self._model = model
        self._log_bug = log_bug
        self._store = SegmentStore(pool, settings.chunk_size)
        self._room = room = Room(self._store)
        self._body = PackedBody(model, pool, graphs)
        slots = SampleSlots(settings.max_samples)
        self._expansion = Expansion(self._store, room, eos_ids, codec, slots)
        self._calls = RunningCalls(self._store, room, slots)
        self._planner = Planner(self._calls, self._store, room, settings, self._end_unplannable)
        self._root_key = root_key
        self._stalled = False
        self.is_sound = True
        """False once the host's memory ran out (oneDNN remembers what it could not create then), or
        a GPU no longer answers."""

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
        count = PromptCounter()
        root_key = self._root_key if weights is None else weights.cache_key
        if isinstance(call, ScoreCall):
            to_come = self._expansion.score(call, count, root_key)
        else:
            to_come = self._expansion.sample(call, count, root_key)
        served = self._calls.newcomers_share(call.priority)
        run = CallRun(
            call=call,
            to_come=to_come,
            served=served,
            left=tokens_of(call, self._store.chunk_size),
            items_to_come=items_of(call),
            weights=weights,
            alone=alone,
        )
        count.run = run
        self._calls.by_id[call.call_id] = run
        self._stalled = False

    def cancel(self, call_id: int) -> None:
        """Forgets a call and frees what it holds."""
        if self._calls.cancel(call_id):
            self._stalled = False

    def add_credit(self, call_id: int, size: int) -> None:
        """The call's reader took this many bytes."""
        if (run := self._calls.by_id.get(call_id)) is not None:
            run.credit += size
            self._stalled = False

    @property
    def can_step(self) -> bool:
        """Whether a step would do something."""
        return not self._stalled and any(run.credit > 0 for run in self._calls.by_id.values())

    def step(self) -> list[CallEvent]:
        """Computes a step; returns what there is to send."""
        began = time.monotonic()
        events = self._calls.expire(began)
        told, room = len(events), self._room.free
        plan = self._planner.next(events)
        if plan.is_empty:
            # Whatever could go on waits for a reader, or for room that only a reader can make;
            # unless a call just left room for which others had asked before.
            events.extend(self._calls.finish())
            self._stalled = len(events) == told and self._room.free <= room
            return events
        for run in plan.calls():
            if run.started is None:
                run.started = began
                events.append(CallStarted(run.call.call_id))
        try:
            events.extend(self._compute(plan))
        except Exception as error:  # noqa: BLE001 - a bug ends the calls it met, not the worker
            events.extend(self._end_step(plan, error))
        account(plan, time.monotonic() - began, self._calls)
        events.extend(self._calls.finish())
        return events

    def _compute(self, plan: StepPlan) -> list[CallEvent]:
        self._model.use(plan.weights)
        states, table, first_decode_row = self._run_body(plan)
        scored = rows_to_score(plan, table, self._calls)
        drawn = samples_to_draw(plan, table, first_decode_row)
        events: list[CallEvent] = []
        if scored or drawn:
            all_states = table.join(states)
            if scored:
                events.extend(answer_scores(self._model, all_states, scored, self._calls))
            if drawn:
                events.extend(answer_draws(self._model, all_states, drawn, self._calls))
        return events

    def _run_body(self, plan: StepPlan) -> tuple[Tensor | None, StateTable, int]:
        """States of the step's rows, where they are, and the row of its first decoded token."""
        decode_tokens = tuple(token for _, _, token in plan.decode_tokens)
        if not plan.pieces and not decode_tokens:
            return None, StateTable(0, {}, ()), 0
        found = self._body.run(Step(tuple(plan.pieces), decode_tokens))
        states = found.states_T_H
        table = StateTable(len(states), found.starts, plan.pieces)
        # Before they count as computed: whoever finds them in the cache may want these.
        _keep_ends(plan, states, table)
        for piece in plan.pieces:
            piece.segment.done = piece.stop
        return states, table, found.decode_rows.start

    def _end_unplannable(self, run: CallRun, error: Exception) -> list[CallEvent]:
        """Ends a call that a plan cannot be made of."""
        self._log_bug(run.call, error)
        return self._calls.fail([run], _bug(error))

    def _end_step(self, plan: StepPlan, error: Exception) -> list[CallEvent]:
        """Ends every call that had a part in a step that could not be computed.

        Whole calls, because what is to come of them may stand on what the step did not compute.
        """
        calls = plan.calls()
        if is_out_of_memory(error):
            self.is_sound = self._model.device.type == "cuda"
            torch.cuda.empty_cache()
            fault = Fault(Reason.OUT_OF_MEMORY, "the device ran out of memory for this step")
        else:
            for run in calls:
                self._log_bug(run.call, error)
            fault = _bug(error)
            self.is_sound = not is_lost(self._model.device)
        # Whose fault it is shows when each is computed alone.
        return self._calls.fail(calls, fault, shared_step=len(calls) > 1)


def _keep_ends(plan: StepPlan, states: Tensor, table: StateTable) -> None:
    """Copies the last states of segments that others may continue, by one launch on a GPU.

    Each has memory of its own, as pages are counted: a row of a common tensor would keep all of it.
    """
    ended = [
        piece.segment
        for piece in plan.pieces
        if piece.segment.kept and piece.stop == len(piece.segment.token_ids)
    ]
    if not ended:
        return
    rows = [states[table.end_of(segment)] for segment in ended]
    copies = [torch.empty_like(row) for row in rows]
    torch._foreach_copy_(copies, rows)
    for segment, copy in zip(ended, copies, strict=True):
        segment.end_state = copy


def _bug(error: Exception) -> Fault:
    return Fault(Reason.INTERNAL_ERROR, bug_message(error))
