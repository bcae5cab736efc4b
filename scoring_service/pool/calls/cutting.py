"""A call as workers get it: what it costs, and its pieces. Made beside the event loop if large."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from scoring_service.peak_memory import StepLimits
from scoring_service.pool.admission.call_memory import check_memory
from scoring_service.pool.streams.parts import Size, size_of, split
from scoring_service.pool.workers.routing import prompt_keys
from scoring_service.types import Call, ScoreCall

_AT_ONCE = 512
"""Prompts, completions and spans of rows of a call that is cut where it stands: about a
millisecond. The most that a call may have take a third of a second."""


@dataclass(frozen=True, slots=True)
class CallPiece:
    """What one worker computes of a call at a time."""

    call: Call
    size: Size
    keys: list[bytes]
    """Keys of its prompts; see `workers.routing`."""


@dataclass(frozen=True, slots=True)
class Cut:
    """A call in pieces."""

    size: Size
    """Size of the whole call."""
    pieces: list[CallPiece]


@dataclass(frozen=True, slots=True)
class CutSettings:
    """How calls are cut."""

    most_tokens: int
    """Tokens of a piece, about."""
    chunk_size: int
    """Tokens between the seams at which workers share prompts; 0 = they share none."""
    limits: StepLimits | None
    """Limits of a step; None = unknown."""


async def cut(call: Call, settings: CutSettings) -> Cut:
    """Cuts a call; the event loop serves others meanwhile, where that takes long.

    Raises:
        ServiceError: OUT_OF_MEMORY.
    """
    if _entries(call) <= _AT_ONCE:
        return cut_at_once(call, settings)
    return await asyncio.to_thread(cut_at_once, call, settings)


def cut_at_once(call: Call, settings: CutSettings) -> Cut:
    """Cuts a call.

    Raises:
        ServiceError: OUT_OF_MEMORY.
    """
    check_memory(call, settings.limits)
    pieces = [piece_of(part, settings.chunk_size) for part in split(call, settings.most_tokens)]
    return Cut(size_of(call), pieces)


def piece_of(call: Call, chunk_size: int) -> CallPiece:
    """All of a call, or of what is left of one, as one piece."""
    return CallPiece(call, size_of(call), prompt_keys(call, chunk_size))


def _entries(call: Call) -> int:
    """What it takes time to cut a call by; beyond `_AT_ONCE` it is not counted to the end."""
    if isinstance(call, ScoreCall):
        items = len(call.groups) + sum(len(group.completions) for group in call.groups)
        if items > _AT_ONCE:
            return items
        return items + sum(len(c.spans) for group in call.groups for c in group.completions)
    return sum(task.n for task in call.prompts)
