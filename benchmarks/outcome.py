"""What one run of one workload by one side leaves: times, and values to compare sides by."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass
class Outcome:
    """One repetition."""

    seconds: float
    """From the first request to the last result in the caller's hands."""
    latencies: list[float] = field(default_factory=list)
    """Seconds to each result (a completion, a sample, or a token while sampling in `mixed`)."""
    logprob_sums: list[float] = field(default_factory=list)
    """Sum of each scored completion's log-probs, in the workload's order: sides must agree."""
    cached_tokens: int | None = None
    """Prompt tokens that came from a prefix cache; in `mixed` those of scoring. None = not told."""

    def as_json(self) -> dict[str, Any]:
        """Plain data."""
        return asdict(self)
