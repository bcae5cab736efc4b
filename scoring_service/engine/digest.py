"""The weights digest: which tensors answered."""

from __future__ import annotations

import hashlib

import torch


def weights_digest(state: dict[str, torch.Tensor]) -> str:
    r"""SHA-256 (hex) over the sorted (name, dtype, shape, bytes) of the tensors.

    Each tensor contributes the line `name dtype shape\n` (such as `lm_head.weight bfloat16
    49152,576`) and then its elements, little-endian, in C order.
    """
    digest = hashlib.sha256()
    for name in sorted(state):
        tensor = state[name].detach()
        dtype = str(tensor.dtype).removeprefix("torch.")
        digest.update(tensor_line(name, dtype, tuple(tensor.shape)))
        if tensor.numel():
            flat = tensor.contiguous().flatten().view(torch.uint8)
            digest.update(flat.cpu().numpy().tobytes())
    return digest.hexdigest()


def tensor_line(name: str, dtype: str, shape: tuple[int, ...]) -> bytes:
    """What stands before a tensor's elements."""
    return f"{name} {dtype} {','.join(map(str, shape))}\n".encode()
