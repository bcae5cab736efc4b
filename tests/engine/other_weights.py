"""Other weights for a model that is loaded, and plain networks that have the same."""

from __future__ import annotations

import copy
from typing import Any

import torch

from scoring_service.engine.loading.loader import LoadedModel, cache_key
from scoring_service.engine.weights.model_weights import ModelWeights, Prepared


def other_weights(loaded: LoadedModel, version: int) -> ModelWeights:
    """The model's own, each number up to some tenths larger or smaller."""
    slots, own = loaded.model.slots, loaded.model.weights
    assert slots is not None
    assert own is not None
    random = torch.Generator().manual_seed(version)
    tensors = {
        name: tensor * (1 + 0.2 * torch.randn(tensor.shape, generator=random)).to(tensor.dtype)
        if tensor.is_floating_point()
        else tensor.clone()
        for name, tensor in own.tensors.items()
    }
    digest = f"digest of {version}"
    key = cache_key(digest, loaded.info.dtype)
    return slots.build(tensors, Prepared(), version, digest, "", key, lambda: None)


def plain_network(network: Any, weights: ModelWeights) -> Any:
    """A plain network of transformers with these weights."""
    own = copy.deepcopy(network)
    unknown = own.load_state_dict(weights.tensors, strict=False).unexpected_keys
    assert not unknown
    return own
