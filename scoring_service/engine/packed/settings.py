"""How steps are made."""

from __future__ import annotations

from dataclasses import dataclass

from scoring_service.engine.page_budget import MAX_SAMPLES


@dataclass(frozen=True, slots=True)
class PackedSettings:
    """Sizes of steps and chunks."""

    chunk_size: int
    """Tokens between seams."""
    max_batch_tokens: int
    """Tokens of a step, except that a segment is never cut."""
    max_samples: int = MAX_SAMPLES
    """Samples under way at once."""
