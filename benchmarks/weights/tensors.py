"""What a trainer pushes: the tensors of a model, and the masters that it steps on."""

from __future__ import annotations

from pathlib import Path

import torch


def trainer_tensors(model: Path) -> dict[str, torch.Tensor]:
    """The model's own state_dict, in bfloat16: what a trainer holds."""
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(model, dtype=torch.bfloat16).state_dict()


def masters(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The same in float32, tied as they were: what an optimizer steps on."""
    wide = {tensor.data_ptr(): tensor.float() for tensor in tensors.values()}
    return {name: wide[tensor.data_ptr()] for name, tensor in tensors.items()}


def bytes_of(tensors: dict[str, torch.Tensor]) -> int:
    """Of all tensors, tied ones counted once."""
    distinct = {tensor.data_ptr(): tensor for tensor in tensors.values()}
    return sum(tensor.numel() * tensor.element_size() for tensor in distinct.values())
