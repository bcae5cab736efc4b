"""Whether a model reads from left to right only."""

from __future__ import annotations

import torch

from scoring_service.engine.model.causal_model import CausalModel


def is_causal(model: CausalModel, limit: int) -> bool:
    """Changes the last token of a sequence and looks whether earlier states notice.

    transformers gives an encoder as a causal LM with no more than a warning.

    Args:
        model: runs plainly.
        limit: its longest sequence.
    """
    length = min(8, limit)
    if length < 2:
        return True
    vocab = model.head.vocab_size
    ids = [(5 * i + 1) % vocab for i in range(length)]
    one = model.states(ids)[:-1].float()
    other = model.states([*ids[:-1], (ids[-1] + 1) % vocab])[:-1].float()
    return bool((one - other).norm() <= 1e-2 * one.norm()) or not bool(torch.isfinite(one).all())
