"""How much longer a token takes in the middle of a sequence than at its start."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import inf
from typing import Any

from scoring_service.model_shape import UnknownFamilyError, model_shape

_WINDOWED = ("sliding_attention", "chunked_attention")


@dataclass(frozen=True, slots=True)
class ContextCost:
    """What a token at a position costs, in tokens at position 0: both by their multiplications."""

    doubling: float = inf
    """Positions before a token that cost as much as all its products with weights."""
    windowed: float = 0.0
    """Share of the layers that attend to a window alone."""
    window: int = 0
    """Positions of that window."""

    def at(self, position: int) -> float:
        """What a token at this position costs."""
        seen = (1 - self.windowed) * position + self.windowed * min(position, self.window)
        return 1 + seen / self.doubling


def context_cost(config: Mapping[str, Any]) -> ContextCost:
    """Of the model of a `config.json`; the same at each position where its family is unknown."""
    try:
        shape = model_shape(config)
    except (UnknownFamilyError, KeyError):
        return ContextCost()
    values = shape.config
    window = values.get("sliding_window") or 0
    if values.get("use_sliding_window") is False:
        window = 0
    kinds = values.get("layer_types") or ([_WINDOWED[0]] if window else [""])
    windowed = sum(kind in _WINDOWED for kind in kinds) / len(kinds) if window else 0.0
    return ContextCost(2 * shape.body_parameters / shape.pair_flops, windowed, window)
