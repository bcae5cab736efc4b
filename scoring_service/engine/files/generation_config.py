"""What a model's own generation_config sets, as far as the model's authors set it."""

from __future__ import annotations

from typing import Any

from transformers import GenerationConfig

_BOOKKEEPING = {"transformers_version", "_from_model_config", "_commit_hash"}


def explicit_settings(config: GenerationConfig | None) -> dict[str, Any]:
    """Settings that differ from transformers' own defaults, as JSON-like values."""
    if config is None:
        return {}
    settings = config.to_diff_dict()
    return {
        name: value
        for name, value in settings.items()
        if name not in _BOOKKEEPING and value is not None
    }


def eos_token_ids(
    config: GenerationConfig | None, model_config: Any, vocab_size: int
) -> tuple[int, ...]:
    """Ids that end a sample: those of the generation_config and of the model's config.

    Ids outside the vocabulary (-1 for none, or left over from a larger model) are never drawn.
    """
    ids: set[int] = set()
    for value in (
        getattr(config, "eos_token_id", None),
        getattr(model_config, "eos_token_id", None),
    ):
        if isinstance(value, int):
            ids.add(value)
        elif value is not None:
            ids.update(int(v) for v in value)
    return tuple(sorted(id_ for id_ in ids if 0 <= id_ < vocab_size))
