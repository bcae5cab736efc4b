"""How many items a request may hold."""

from __future__ import annotations

from scoring_service.errors import invalid

MAX_ITEMS = 65_536
"""Completions or samples. Reading and dividing a request keep other calls waiting meanwhile, and a
short one can ask for as many samples as it likes."""


def check_items(count: int, path: str, kind: str) -> None:
    """Refuses a request of too many items.

    Raises:
        ServiceError: INVALID_FIELD.
    """
    if count > MAX_ITEMS:
        raise invalid(path, f"{count} {kind} in one call; at most {MAX_ITEMS}: divide the call")
