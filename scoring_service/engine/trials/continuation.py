"""Whether a model that runs one by one goes on from what it keeps of earlier tokens."""

from __future__ import annotations

import copy

import torch
from torch import Tensor

from scoring_service.engine.fused.trials import first_line
from scoring_service.engine.machine.memory import is_lost
from scoring_service.engine.model.causal_model import CausalModel
from scoring_service.engine.trials.closeness import states_agree

_TOKENS = 40
_PROMPT_TOKENS = 28


def continuation_failure(model: CausalModel, limit: int) -> str:
    """Why samples of a model cannot go on from what it keeps; empty where they can, or need not.

    transformers computes a sample from a cache and a scored sequence without one. Of a model whose
    cache fails or gives something else, the two would not agree.

    Args:
        model: runs plainly.
        limit: its longest sequence.

    Raises:
        RuntimeError: the device was lost meanwhile.
    """
    tokens = min(_TOKENS, limit)
    ids = [(11 * i + 5) % model.head.vocab_size for i in range(tokens)]
    prompt = max(1, tokens * _PROMPT_TOKENS // _TOKENS)
    try:
        found_T_H = _continued(model, ids, prompt)
        if found_T_H is None:
            return ""
        expected_T_H = model.states(ids)[prompt - 1 :]
    except Exception as error:
        if is_lost(model.device):
            raise RuntimeError("the device was lost while its cache was tried") from error
        return first_line(error)
    if not bool(torch.isfinite(expected_T_H).all()):
        return ""  # nothing to compare with
    if states_agree(found_T_H, expected_T_H, model.dtype):
        return ""
    return "it gives other states"


def _continued(model: CausalModel, ids: list[int], prompt: int) -> Tensor | None:
    """States from the prompt's last token on, as a sample computes them; None without a cache."""
    state, cache = model.last_state(ids[:prompt])
    if cache is None:
        return None
    states = [state]
    cache = copy.deepcopy(cache)  # which each sample has of its own
    for stop in range(prompt + 1, len(ids) + 1):
        state, cache = model.continued(ids[:stop], cache)
        states.append(state)
    return torch.cat(states)
