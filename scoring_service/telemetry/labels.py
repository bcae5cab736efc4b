"""Labels that callers decide, kept to a bounded number of values."""

from __future__ import annotations

OTHER = "other"

MAX_VALUES = 64
"""Values of a label; every further one is counted as "other"."""


class BoundedLabel:
    """The first values seen keep their names: a caller cannot make metrics without number."""

    def __init__(self, most: int = MAX_VALUES) -> None:
        self._most = most
        self._seen: set[str] = set()

    def of(self, value: str) -> str:
        """The label for a value."""
        if value in self._seen:
            return value
        if len(self._seen) >= self._most:
            return OTHER
        self._seen.add(value)
        return value
