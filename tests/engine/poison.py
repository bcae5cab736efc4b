"""A model that breaks at a token."""

from __future__ import annotations

import math
from typing import Any

import pytest

from scoring_service.engine.loading.loader import LoadedModel


def poison_token(loaded: LoadedModel, token_id: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes the state of one token not a number, on whichever path the model takes."""
    model = loaded.model
    states, last_state, packed_states = model.states, model.last_state, model.packed_states

    def poisoned_states(ids: list[int]) -> Any:
        found = states(ids)
        return found * math.nan if token_id in ids else found

    def poisoned_last_state(ids: list[int], cache: Any = None) -> Any:
        state, cache = last_state(ids, cache)
        return (state * math.nan if ids[-1] == token_id else state), cache

    def poisoned_packed_states(ids_T: Any, *others: Any) -> Any:
        found = packed_states(ids_T, *others).clone()
        found[: len(ids_T)][ids_T == token_id] = math.nan
        return found

    monkeypatch.setattr(model, "states", poisoned_states)
    monkeypatch.setattr(model, "last_state", poisoned_last_state)
    monkeypatch.setattr(model, "packed_states", poisoned_packed_states)
