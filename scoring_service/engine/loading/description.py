"""What a loaded model is, as the server tells it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from scoring_service.engine.files.checkpoint_names import with_checkpoint_names
from scoring_service.engine.files.generation_config import eos_token_ids, explicit_settings
from scoring_service.engine.files.model_settings import model_settings
from scoring_service.engine.loading.path import ChosenPath, backend_of
from scoring_service.engine.model.causal_model import CausalModel
from scoring_service.types import EngineInfo

_PLAIN_BATCH_TOKENS = 1024
"""Of a model that has no steps: calls are cut into parts by it."""


def describe(
    network: Any,
    model: CausalModel,
    path: ChosenPath,
    *,
    no_kernels: str,
    max_sequence_tokens: int,
    deterministic: bool,
    on_stage: Callable[[str], None],
) -> EngineInfo:
    """Everything but its tokenizer and the time that it took.

    Args:
        network: transformers' own.
        model: the same, as the engine runs it, with its weights named.
        path: that it takes.
        no_kernels: why it has no C++ kernels, to stand behind the path's reason.
        max_sequence_tokens: of the longest sequence.
        deterministic: whether equal requests get equal bits.
        on_stage: is told what cannot be said of it.

    Raises:
        RuntimeError: its weights are not named yet.
    """
    head, packed, weights, slots = model.head, path.packed, model.weights, model.slots
    if weights is None:
        raise RuntimeError("a model is described once its weights are named")
    generation = getattr(network, "generation_config", None)
    settings = None if packed is None else packed.settings
    return EngineInfo(
        architecture=type(network).__name__,
        vocab_size=head.vocab_size,
        parameter_count=sum(p.numel() for p in network.parameters()),
        max_sequence_tokens=max_sequence_tokens,
        weight_version=weights.version,
        weights_digest=weights.digest,
        dtype=type_name(model.dtype),
        residual_dtype=type_name(model.residual_dtype),
        head_dtype=type_name(head.dtype),
        backend=backend_of(model, packed),
        device=str(model.device),
        deterministic=deterministic,
        numerics_id=weights.numerics_id,
        packed=packed is not None,
        path_reason=f"{path.reason}{no_kernels if packed else ''}",
        chunk_size=0 if settings is None else settings.chunk_size,
        eos_token_ids=eos_token_ids(generation, network.config.get_text_config(), head.vocab_size),
        max_batch_tokens=_PLAIN_BATCH_TOKENS if settings is None else settings.max_batch_tokens,
        generation_config=explicit_settings(generation),
        settings=model_settings(network.config),
        tensors=() if slots is None else with_checkpoint_names(network, slots.specs, on_stage),
        limits=None if packed is None else packed.limits,
    )


def type_name(dtype: torch.dtype) -> str:
    """Such as "bfloat16"."""
    return str(dtype).removeprefix("torch.")
