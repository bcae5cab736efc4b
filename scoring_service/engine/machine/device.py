"""The device that a worker computes on, by its name."""

from __future__ import annotations

import torch

from scoring_service.errors import ConfigurationError


def find_device(name: str) -> torch.device:
    """A device by its name; "auto" = a GPU where there is one.

    Raises:
        ConfigurationError: it cannot be used.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ConfigurationError(f"device {name!r} cannot be used: {error}") from error
    return device


def prepare_device(device: torch.device) -> None:
    """Makes a device that of this thread, and chooses what torch computes with there."""
    if device.type != "cuda":
        return
    if device.index is not None:
        # Triton launches on the thread's device, wherever its tensors are.
        torch.cuda.set_device(device)
    # cuDNN makes a plan of every new pair of lengths, which takes longer than the attention itself.
    torch.backends.cuda.enable_cudnn_sdp(False)
    _sum_in_fp32()


def _sum_in_fp32() -> None:
    """Holds matrix products to fp32 sums of the operands as they are.

    What a process finds is not the same everywhere: images of NVIDIA's set
    TORCH_ALLOW_TF32_CUBLAS_OVERRIDE=1, which rounds factors of fp32 products to 10 bits of
    mantissa, and a library may have asked for the same; and torch lets products of half precision
    add up parts of their sums (split-K) in half precision.
    """
    matmul = torch.backends.cuda.matmul
    matmul.allow_tf32 = False
    matmul.allow_bf16_reduced_precision_reduction = False
    matmul.allow_fp16_reduced_precision_reduction = False
    matmul.allow_fp16_accumulation = False


def device_name(device: torch.device) -> str:
    """Which GPU it is, or that it is none."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
