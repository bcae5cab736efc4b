"""Whether our idea of a model's head gives the logits that the model gives, and what follows."""

from __future__ import annotations

from typing import Any

import torch

from scoring_service.engine.files.network import DTYPES
from scoring_service.engine.head.head import LinearHead, RowHead, WholeLogits, linear_head
from scoring_service.errors import ConfigurationError
from scoring_service.kernels.cpu.ops import CpuKernels
from scoring_service.types import EngineConfig

_SPREADS = (1.0, 30.0, 300.0)
"""Standard deviations of the probe's logits: soft-capping shows only where logits are large."""


def choose_head(
    network: Any, config: EngineConfig, kernels: CpuKernels | None
) -> tuple[RowHead, str]:
    """The model's head as a linear layer where a probe agrees, else its own logits and why.

    Args:
        network: the whole model.
        config: what was asked for.
        kernels: the C++ kernels, where they are used. Who asks for the plain path wants torch's own
            operators, to compare with.

    Raises:
        ConfigurationError: there is no such type.
    """
    text_config = network.config.get_text_config()
    if config.head_dtype != "auto" and config.head_dtype not in DTYPES:
        raise ConfigurationError(
            f"head dtype {config.head_dtype!r} is none of auto, {', '.join(sorted(DTYPES))}"
        )
    dtype = DTYPES.get(config.head_dtype, network.dtype)
    module = network.get_output_embeddings()
    if isinstance(module, torch.nn.Linear):
        own = linear_head(module, text_config, network.dtype)
        if head_matches(network, module, own):
            return linear_head(module, text_config, dtype, kernels), ""
    vocab = int(text_config.vocab_size)
    return (
        WholeLogits(vocab, network.dtype),
        "its head is not a linear layer that could be run on wanted rows alone, so all "
        f"rows of a sequence are projected, in {str(network.dtype).removeprefix('torch.')}",
    )


def head_matches(network: Any, module: torch.nn.Linear, head: LinearHead) -> bool:
    """Feeds made-up hidden states to the model's own tail and compares its logits with ours.

    Soft-capping and scaling come after the head, somewhere in the model's forward. A hook puts
    known hidden states before the head, so whatever follows is seen at any magnitude.

    Args:
        network: the whole model.
        module: its output embedding.
        head: ours, in the model's own dtype.
    """
    generator = torch.Generator().manual_seed(0)
    weight_V_H = module.weight.detach()
    noise = torch.randn(4, weight_V_H.shape[1], generator=generator)
    hidden = noise.to(weight_V_H.device, weight_V_H.dtype)
    bare = torch.nn.functional.linear(hidden, weight_V_H).float()
    unit = hidden / bare.std()
    with torch.inference_mode():
        return all(_agrees(network, module, head, unit * spread) for spread in _SPREADS)


def _agrees(network: Any, module: torch.nn.Module, head: LinearHead, hidden: torch.Tensor) -> bool:
    def inject(_module: torch.nn.Module, inputs: tuple[torch.Tensor, ...]) -> Any:
        return (hidden[None].to(inputs[0].dtype), *inputs[1:])

    hook = module.register_forward_pre_hook(inject)
    try:
        ids = torch.zeros(1, 1, dtype=torch.int64, device=hidden.device)
        expected = network(input_ids=ids, use_cache=False).logits[0].float()
    finally:
        hook.remove()
    found = head.logits(hidden)
    if found.shape != expected.shape:
        return False
    # A few roundings of the model's own dtype, at the size of the largest logit. Of ours too: where
    # the model masks tokens, its own are infinite or nearly so, and any difference seems small.
    precision = torch.finfo(head.dtype).eps * 4
    largest = torch.minimum(found.abs().max(), expected.abs().max())
    return bool((found - expected).abs().max() <= precision * largest)
