"""A model's files to the network that transformers makes of them."""

from __future__ import annotations

import textwrap
from typing import Any

import torch
from transformers import AutoModelForCausalLM

from scoring_service.engine.files.model_source import source_of
from scoring_service.errors import ConfigurationError
from scoring_service.types import EngineConfig

DTYPES = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}


def load_network(config: EngineConfig, device: torch.device) -> Any:
    """The model alone, ready to run.

    Raises:
        ConfigurationError: it cannot be had.
    """
    source, arguments = source_of(config)
    if config.dtype != "auto" and config.dtype not in DTYPES:
        raise ConfigurationError(
            f"dtype {config.dtype!r} is none of auto, {', '.join(sorted(DTYPES))}"
        )
    dtype = DTYPES.get(config.dtype, "auto")
    try:
        network, found = AutoModelForCausalLM.from_pretrained(
            source,
            dtype=dtype,
            output_loading_info=True,
            use_safetensors=True,  # what else there is (pytorch_model.bin) are pickles
            **arguments,
        )
        if getattr(network.config.get_text_config(), "attn_logit_softcapping", None):
            # transformers' default attention leaves soft-capping out without a word.
            network.set_attn_implementation("eager")
        network = network.to(device).eval().requires_grad_(False)
    except Exception as error:  # the errors of many parsers have no common base
        if isinstance(error, OSError) and "file named model.safetensors" in str(error):
            raise ConfigurationError(
                f"the model {config.model!r} has no weights in safetensors. Pickles "
                "(pytorch_model.bin) are not read: load them with transformers where you trust "
                "them, and save_pretrained() writes safetensors"
            ) from error
        raise unloadable(f"the model {config.model!r}", error) from error
    if missing := sorted(found["missing_keys"]):
        # transformers fills them with random numbers and goes on.
        raise ConfigurationError(
            f"the files of {config.model!r} lack {len(missing)} of the weights of a "
            f"{type(network).__name__}, such as {missing[0]}"
        )
    return network


def unloadable(what: str, error: Exception) -> ConfigurationError:
    """Quotes a library's message, but not the list of all architectures at the end of some."""
    reason = textwrap.shorten(str(error), 500, placeholder=" …")
    return ConfigurationError(f"cannot load {what}: {reason}")


def sequence_limit(network: Any, config: EngineConfig) -> int:
    """Longest sequence: the least of the model's positions and what the configuration allows.

    Raises:
        ConfigurationError: neither says, or more is asked for than the model has.
    """
    positions = getattr(network.config.get_text_config(), "max_position_embeddings", None)
    wanted = config.max_model_len
    if positions is not None and wanted is not None and wanted > positions:
        raise ConfigurationError(
            f"max_model_len {wanted} exceeds the model's {positions} positions"
        )
    limits = [n for n in (positions, wanted) if n is not None]
    if not limits:
        raise ConfigurationError(
            "the model does not say how long a sequence may be: set max_model_len"
        )
    return int(min(limits))
