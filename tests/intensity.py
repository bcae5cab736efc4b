"""How long the faults last: short in `make test`, long in `make soak`."""

from __future__ import annotations

import os

SOAK = os.environ.get("SOAK") == "1"


def short_or_long(short: float, long: float) -> float:
    """A duration or a number, by what is run."""
    return long if SOAK else short
