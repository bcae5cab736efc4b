"""The weights digest: which tensors answered."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

import torch

from scoring_service.engine.weights.tensor_specs import tensor_specs
from scoring_service.types import TensorSpec


def weights_digest(state: Mapping[str, torch.Tensor]) -> str:
    r"""SHA-256 (hex) over the sorted (name, dtype, shape, bytes) of the tensors.

    Each tensor contributes the line `name dtype shape\n` (such as `lm_head.weight bfloat16
    49152,576`) and then its elements, little-endian, in C order. Tied tensors are one, under the
    first of their names.
    """
    digest = hashlib.sha256()
    for spec in tensor_specs(state):
        if spec.tied_to:
            continue
        digest.update(tensor_line(spec))
        tensor = state[spec.name].detach()
        if tensor.numel():
            flat = tensor.contiguous().flatten().view(torch.uint8)
            digest.update(flat.cpu().numpy().tobytes())
    return digest.hexdigest()


def tensor_line(spec: TensorSpec) -> bytes:
    """What stands before a tensor's elements."""
    return f"{spec.name} {spec.dtype} {','.join(map(str, spec.shape))}\n".encode()
