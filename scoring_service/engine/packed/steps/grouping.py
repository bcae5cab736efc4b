"""Grouping of what is computed alike, whichever calls it belongs to."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable
from typing import TypeVar

T = TypeVar("T")


def grouped_by_kind(items: Iterable[T], kind: Callable[[T], Hashable]) -> list[T]:
    """Items of one kind after one another, in their order; kinds as they first come."""
    by_kind: dict[Hashable, list[T]] = {}
    for item in items:
        by_kind.setdefault(kind(item), []).append(item)
    return [item for alike in by_kind.values() for item in alike]
