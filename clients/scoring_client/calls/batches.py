"""How much to ask in one call, where there is more than a call should carry."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TypeVar

ItemT = TypeVar("ItemT")


def batches(sized: Iterable[tuple[ItemT, int]], room: int) -> Iterator[list[ItemT]]:
    """Yield items in order, as many at a time as fit; one that is larger than the room, alone.

    Args:
        sized: Items with their sizes, such as tokens.
        room: Size of a batch, such as ``limits.preferred_tokens_per_call`` of ``model_info()``.
    """
    part: list[ItemT] = []
    left = room
    for item, size in sized:
        if part and left < size:
            yield part
            part, left = [], room
        part.append(item)
        left -= size
    if part:
        yield part
