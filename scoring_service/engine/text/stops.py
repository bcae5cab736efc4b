"""When a sample ends: end-of-sequence ids, stop ids, stop texts, length."""

from __future__ import annotations

from dataclasses import dataclass

from scoring_service.engine.text.tokenizer import TextCodec, TextStream
from scoring_service.types import SamplingTask


@dataclass(frozen=True, slots=True)
class Stop:
    """Why a sample ended."""

    finish_reason: str
    """"stop" or "length"."""
    matched: str | int | None = None


class StopChecker:
    """Follows one sample: gives the text that is safe to send, and says when to stop.

    Text that may yet turn out to be the beginning of a stop text is held back. Stop texts are
    looked for in what follows the first `min_tokens` tokens.
    """

    def __init__(
        self, task: SamplingTask, eos_ids: tuple[int, ...], codec: TextCodec | None
    ) -> None:
        self.stop_ids = frozenset(task.stop_token_ids) | (
            frozenset() if task.ignore_eos else frozenset(eos_ids)
        )
        self._task = task
        self._stream = None if codec is None else TextStream(codec, task.prompt_ids.tolist()[-16:])
        self._drawn = 0
        self._held = ""
        self._ignored = 0
        """Characters of what is held or comes next that belong to the first `min_tokens` tokens."""
        self._holdback = max((len(text) for text in task.stop), default=1) - 1

    @property
    def bans_stops(self) -> bool:
        """Whether the next token may not be a stop."""
        return self._drawn < self._task.min_tokens

    @property
    def banned_ids(self) -> tuple[int, ...]:
        """Ids that the next token may not be, ascending."""
        return tuple(sorted(self.stop_ids)) if self.bans_stops else ()

    def push(self, token_id: int) -> tuple[str, Stop | None]:
        """Takes a drawn token; returns the text that became certain, and the end if it is one."""
        self._drawn += 1
        stops_count = self._drawn > self._task.min_tokens
        if stops_count and token_id in self.stop_ids:
            return self._end(Stop("stop", token_id))
        if self._stream is not None:
            self._held += self._stream.push(token_id)
        if stops_count and (match := self._match()) is not None:
            text, matched = match
            self._held = ""
            return text, Stop("stop", matched)
        if self._drawn == self._task.max_tokens:
            return self._end(Stop("length"))
        safe = max(0, len(self._held) - (self._holdback if stops_count else 0))
        text, self._held = self._held[:safe], self._held[safe:]
        self._ignored = max(0, self._ignored - safe) if stops_count else len(self._ahead)
        return text, None

    @property
    def _ahead(self) -> str:
        return "" if self._stream is None else self._stream.ahead

    def _match(self) -> tuple[str, str] | None:
        """What comes before the stop text that begins first, and that; the longest among equals."""
        certain = self._held + self._ahead
        places = [(certain.find(text, self._ignored), -len(text), text) for text in self._task.stop]
        place, _, first = min((p for p in places if p[0] >= 0), default=(-1, 0, ""))
        return None if place < 0 else (certain[:place], first)

    def _end(self, stop: Stop) -> tuple[str, Stop]:
        text = self._held + (self._stream.flush() if self._stream else "")
        self._held = ""
        return text, stop
