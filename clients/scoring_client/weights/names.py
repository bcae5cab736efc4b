"""Names of parameters without what trainers wrap around modules.

Wrappers register the module they wrap as a child, and its name becomes a part of every parameter's
name: torch.compile, FSDP, activation checkpointing, DDP and PEFT. Without those parts a name is
that of transformers' ``state_dict``, which is what servers know. The names that checkpoints have
instead are the server's to tell: see ``joined``.
"""

from scoring_client.errors import InvalidRequestError

_WRAPPERS = frozenset(
    {
        "_orig_mod",  # torch.compile
        "_fsdp_wrapped_module",  # FSDP
        "_fpw_module",  # FSDP of torch 1
        "_checkpoint_wrapped_module",  # activation checkpointing
    }
)
_DATA_PARALLEL = "module."
_PEFT = "base_model.model."
_BASE_LAYER = "base_layer"
_ADAPTER_PREFIX = "lora_"
_SAVED = "modules_to_save"
_REPLACED = "original_module"


def plain_name(name: str, *, merged_lora: bool = False) -> str | None:
    """Return the parameter's name in the model that was wrapped.

    Args:
        name: Name in the wrapped model, such as ``module._orig_mod.model.norm.weight``.
        merged_lora: The weights of PEFT's base layers include the adapters. Without it adapters are
            refused, because base layers alone are other weights than those that are trained.

    Returns:
        The name, or None for a tensor that is no part of the model: an adapter that was merged, or
        a module that PEFT replaced by a trained copy.

    Raises:
        InvalidRequestError: adapters that were not merged, or FSDP's flattened shards.
    """
    parts = [part for part in name.split(".") if part not in _WRAPPERS]
    if "_flat_param" in parts:
        raise InvalidRequestError(
            f"{name} is a flattened shard of FSDP: gather whole tensors first "
            "(StateDictType.FULL_STATE_DICT), or use fully_shard, whose tensors are gathered here"
        )
    plain = ".".join(parts)
    while plain.startswith(_DATA_PARALLEL):
        plain = plain.removeprefix(_DATA_PARALLEL)
    while plain.startswith(_PEFT):
        plain = plain.removeprefix(_PEFT)
    return _without_adapter(name, plain.split("."), merged_lora)


def legacy_name(name: str) -> str:
    """Return the name that a normalisation's tensor has today, of one from TensorFlow's times."""
    return name.replace("LayerNorm.gamma", "LayerNorm.weight").replace(
        "LayerNorm.beta", "LayerNorm.bias"
    )


def _without_adapter(name: str, parts: list[str], merged: bool) -> str | None:
    adapter = any(part.startswith(_ADAPTER_PREFIX) for part in parts)
    if not merged and (adapter or _BASE_LAYER in parts):
        raise InvalidRequestError(
            f"{name} belongs to a LoRA adapter that is not merged: call model.merge_adapter() and "
            "push the model itself, or its tensors with merged_lora=True"
        )
    if adapter or _REPLACED in parts:
        return None
    if _SAVED in parts:
        # modules_to_save.<adapter's name>.
        place = parts.index(_SAVED)
        parts = parts[:place] + parts[place + 2 :]
    return ".".join(part for part in parts if part != _BASE_LAYER)
