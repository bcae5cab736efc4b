"""One sample on its way through steps."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from scoring_service.engine.attention.pages import slots_of
from scoring_service.engine.attention.segments import DecodeToken, Segment, SlotArray
from scoring_service.engine.events import SampleSlice
from scoring_service.engine.outputs.draws import DrawRow
from scoring_service.engine.outputs.sample_slices import (
    DrawnToken,
    PendingTokens,
    is_due,
    sample_slice,
)
from scoring_service.engine.text.stops import StopChecker
from scoring_service.types import PAGE_TOKENS, SampleCall, SamplingTask


@dataclass(eq=False, slots=True)
class SampleRun:
    """A sample, its pages, and what was drawn of it."""

    call: SampleCall
    task: SamplingTask
    index: int
    prompt_end: Segment
    stop_checker: StopChecker
    order: int
    """The lower started earlier."""
    slots: SlotArray | None = None
    """int64 [prompt + max_tokens]: of the prompt, then of drawn tokens as pages are taken. None
    while it does not go on: there may be many that wait."""
    pages: list[int] = field(default_factory=list)
    token_ids: list[int] = field(default_factory=list)
    cached: int = 0
    """Drawn tokens whose keys and values are in pages."""
    pending: PendingTokens = field(default_factory=PendingTokens)
    begun: bool = False
    """Whether its unit joined a step, so that its prompt is computed."""

    @classmethod
    def begin(
        cls,
        call: SampleCall,
        task: SamplingTask,
        index: int,
        prompt_end: Segment,
        stop_checker: StopChecker,
        order: int,
    ) -> SampleRun:
        """A sample before its first token, or after those that another worker drew."""
        run = cls(call, task, index, prompt_end, stop_checker, order)
        for token_id in task.drawn_before(index):
            run.token_ids.append(token_id)
            stop_checker.push(token_id)  # the text up to here was sent
        run.pending = PendingTokens(start=len(run.token_ids))
        return run

    @property
    def pages_missing(self) -> int:
        """Pages to take before every drawn token can be run through the model."""
        return max(0, -(-len(self.token_ids) // PAGE_TOKENS) - len(self.pages))

    def add_pages(self, pages: list[int]) -> None:
        """Room for more tokens."""
        if self.slots is not None:
            self._place_pages(self.slots, len(self.pages), pages)
        self.pages.extend(pages)

    def _place_pages(self, slots: SlotArray, before: int, pages: list[int]) -> None:
        first = self.prompt_end.stop + before * PAGE_TOKENS
        room = slots[first : first + len(pages) * PAGE_TOKENS]
        room[:] = slots_of(pages, len(room))

    def preempt(self) -> list[int]:
        """Gives up its pages; what was drawn is computed again when there is room."""
        pages, self.pages, self.cached = self.pages, [], 0
        return pages

    def wait(self) -> None:
        """It does not go on in the next step."""
        self.slots = None

    def decode_tokens(self, limit: int) -> list[DecodeToken]:
        """The next tokens to run through the model, at most `limit`; they count as cached."""
        stop = min(len(self.token_ids), self.cached + limit)
        first = self.prompt_end.stop
        if self.slots is None:
            self.slots = np.empty(first + self.task.max_tokens, dtype=np.int64)
            self.slots[:first] = self.prompt_end.chain_slots()
            self._place_pages(self.slots, 0, self.pages)
        decode_tokens = [
            DecodeToken(self.token_ids[place], self.slots[: first + place + 1])
            for place in range(self.cached, stop)
        ]
        self.cached = stop
        return decode_tokens

    @property
    def can_draw(self) -> bool:
        """Whether everything drawn so far was run through the model."""
        return self.cached == len(self.token_ids)

    def draw_row(self) -> DrawRow:
        """What to draw next."""
        position = self.prompt_end.stop + len(self.token_ids)
        return DrawRow(
            self.task, self.index, position, self.stop_checker.banned_ids, self.call.top_logprobs
        )

    def push(self, token: DrawnToken, weight_version: int) -> SampleSlice | None:
        """Takes a drawn token; gives a slice when one is due. The last one ends the sample."""
        self.token_ids.append(token.token_id)
        self.pending.tokens.append(token)
        text, stop = self.stop_checker.push(token.token_id)
        self.pending.text += text
        if stop is None and not is_due(self.pending, self.call):
            return None
        piece = sample_slice(self.call, self.task, self.index, self.pending, stop, weight_version)
        self.pending = PendingTokens(start=len(self.token_ids))
        return piece
