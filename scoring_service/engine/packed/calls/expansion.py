"""A call's items to units, one item at a time, as room allows."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Callable, Generator

from scoring_service.engine.attention.pages import pages_for
from scoring_service.engine.attention.segments import Segment
from scoring_service.engine.attention.store import SegmentStore
from scoring_service.engine.packed.calls.call_run import Unit
from scoring_service.engine.packed.calls.reservation import Room
from scoring_service.engine.packed.calls.sample_run import SampleRun
from scoring_service.engine.packed.calls.sample_slots import SampleSlots
from scoring_service.engine.packed.calls.score_run import CompletionRun, tokens_to_compute
from scoring_service.engine.text.stops import StopChecker
from scoring_service.engine.text.tokenizer import TextCodec
from scoring_service.types import GroupTask, SampleCall, SamplingTask, ScoreCall

Units = Generator[list[Unit] | None, None, None]

OnPrompt = Callable[[list[Segment]], None]
"""Called with the chain of each prompt, before anything of it is computed for this call."""


class Expansion:
    """Makes units; None says that there is no room for the next item yet."""

    def __init__(
        self,
        store: SegmentStore,
        room: Room,
        eos_ids: tuple[int, ...],
        codec: TextCodec | None,
        slots: SampleSlots,
    ) -> None:
        self._store = store
        self._room = room
        self._eos_ids = eos_ids
        self._codec = codec
        self._slots = slots
        self._order = itertools.count()

    def score(self, call: ScoreCall, on_prompt: OnPrompt, root_key: bytes) -> Units:
        """Prompt by prompt, each with its completions behind it.

        Args:
            call: to be computed.
            on_prompt: see there.
            root_key: what its cached prompts depend on beside tokens and salt.
        """
        root = None if call.uncached else _root(root_key, call.cache_salt)
        for group in call.groups:
            yield from self._group(call, group, on_prompt, root)

    def sample(self, call: SampleCall, on_prompt: OnPrompt, root_key: bytes) -> Units:
        """Prompt by prompt, each with its samples behind it; arguments as of `score`."""
        root = _root(root_key, call.cache_salt)
        for task in call.prompts:
            yield from self._prompt(call, task, on_prompt, root)

    def _group(
        self, call: ScoreCall, group: GroupTask, on_prompt: OnPrompt, root: bytes | None
    ) -> Units:
        first = len(group.prompt_ids)
        chunk = self._store.chunk_size
        tasks = [
            (task, tokens_to_compute(task, call.next_token, first, chunk))
            for task in group.completions
        ]
        largest = max((self._store.branch_pages(first, first + n) for _, n in tasks), default=0)
        while not self._room.admits(self._store.prompt_pages(group.prompt_ids, root) + largest):
            yield None
        chain = self._store.prompt(group.prompt_ids, root)
        reservation = self._room.reserve(largest)
        try:
            on_prompt(chain)
            yield [Unit(segment) for segment in chain]
            for task, tokens in tasks:
                run = CompletionRun.begin(call, group, task, chain[-1])
                pages = self._store.branch_pages(first, first + tokens)
                if pages:
                    takes_promised = reservation.used is None
                    while not self._room.use(reservation, pages):
                        yield None
                        takes_promised = reservation.used is None
                    if takes_promised:
                        run.reservation = reservation
                    else:
                        run.shared_pages = pages
                if tokens:
                    branch = self._store.branch(chain[-1], task.token_ids[:tokens])
                else:
                    branch = []
                    self._store.hold(chain[-1])
                run.end = branch[-1] if branch else chain[-1]
                units = [Unit(segment, completion=run) for segment in branch]
                yield units or [Unit(None, completion=run)]
        finally:
            self._room.close(reservation)
            self._store.release(chain[-1])

    def _prompt(
        self, call: SampleCall, task: SamplingTask, on_prompt: OnPrompt, root: bytes
    ) -> Units:
        own = pages_for(task.max_tokens)
        while not self._room.admits(self._store.prompt_pages(task.prompt_ids, root), own):
            yield None
        chain = self._store.prompt(task.prompt_ids, root)
        to_come = object()
        self._room.expect(to_come, own)
        codec = self._codec if call.return_text or task.stop else None
        try:
            on_prompt(chain)
            yield [Unit(segment) for segment in chain]
            for index in range(task.first_sample_index, task.first_sample_index + task.n):
                while not self._slots.may_begin(call):
                    yield None
                stop_checker = StopChecker(task, self._eos_ids, codec)
                order = next(self._order)
                run = SampleRun.begin(call, task, index, chain[-1], stop_checker, order)
                self._slots.begin(call)
                self._store.hold(chain[-1])
                self._room.expect(run, own)
                yield [Unit(None, sample=run)]
        finally:
            self._room.expect_no_more(to_come)
            self._store.release(chain[-1])


def _root(root_key: bytes, salt: str) -> bytes:
    return hashlib.blake2b(root_key + salt.encode(), digest_size=16).digest()
