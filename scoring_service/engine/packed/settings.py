"""How steps are made."""

from __future__ import annotations

from dataclasses import dataclass

from scoring_service.engine.machine.page_budget import MAX_SAMPLES
from scoring_service.engine.model.context_cost import ContextCost


@dataclass(frozen=True, slots=True)
class PackedSettings:
    """Sizes of steps and chunks."""

    chunk_size: int
    """Tokens between seams."""
    max_batch_tokens: int
    """Tokens of a step, except that a segment is not cut for it."""
    max_samples: int = MAX_SAMPLES
    """Samples that a step draws."""

    beside_samples: int = 0
    """Most tokens of scoring and prompts in a step of few samples; 0 = a chunk."""
    cuts: ContextCost | None = None
    """What a token counts of that, where segments are cut for it; None = they are not."""
    graph_rows: tuple[int, ...] = ()
    """Rows of the steps that are recorded and replayed where they only go on with samples."""

    @property
    def turn_tokens(self) -> int:
        """What a call gets before it is the turn of others of its priority: as much as a step."""
        return self.max_batch_tokens
