"""Rotary positions that depend on how long the sequence of a forward pass is."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_STEP_DEPENDENT = ("dynamic", "longrope")


def step_dependent_kinds(text_config: Any) -> list[Mapping[str, Any]]:
    """The `rope_parameters` of such positions: one set, or one a kind of layer."""
    rope = getattr(text_config, "rope_parameters", None) or {}
    kinds = [rope] if "rope_type" in rope else [v for v in rope.values() if isinstance(v, dict)]
    return [kind for kind in kinds if kind.get("rope_type") in _STEP_DEPENDENT]


def switching_lengths(text_config: Any) -> frozenset[int]:
    """Lengths at which a growing sequence turns all of its positions anew.

    Beyond the positions of the first training longrope has other frequencies, for the whole
    sequence: keys that were turned before do not go with those that follow. What "dynamic" changes
    begins beyond `max_position_embeddings`, where no sequence gets.
    """
    own = getattr(text_config, "original_max_position_embeddings", None)
    found = [
        kind.get("original_max_position_embeddings", own)
        for kind in step_dependent_kinds(text_config)
        if kind["rope_type"] == "longrope"
    ]
    return frozenset(length + 1 for length in found if isinstance(length, int))
