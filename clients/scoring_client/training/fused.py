"""Where the service's kernels are found, when they are installed beside this package."""

from __future__ import annotations

import importlib
import importlib.util
from typing import Protocol, cast

import torch
from torch import Tensor

MODULE = "scoring_service.kernels.linear_processed_logprobs"
"""Has ``linear_processed_logprobs``, a FusedLinear. By name: this package imports no service."""

_DEVICES = ("cpu", "cuda")
"""Others may have no float64, in which supports are decided."""

_TYPES = (torch.float32, torch.bfloat16, torch.float16)


class FusedLinear(Protocol):
    """A differentiable linear head with truncation that holds no more than a tile of logits."""

    def __call__(
        self,
        hidden: Tensor,
        weight: Tensor,
        labels: Tensor,
        *,
        bias: Tensor | None,
        keep_labels: bool,
        temperature: Tensor,
        top_k: Tensor | None = None,
        top_p: Tensor | None = None,
        min_p: Tensor | None = None,
        chunk_rows: int | None = None,
    ) -> Tensor:
        """Return processed log-probs, float32 [T], 0 where the label is negative.

        Args:
            hidden: [T, H].
            weight: [V, H].
            labels: int64 [T].
            bias: [V].
            keep_labels: The label joins the support.
            temperature: float32 [T].
            top_k: int64 [T]; 0, -1 and V or more = all.
            top_p: float32 [T]; 1 = all.
            min_p: float32 [T]; 0 = all.
            chunk_rows: Rows of logits held at a time; None = what suits the device.
        """
        ...


def fused_linear_processed_logprobs(hidden: Tensor, weight: Tensor) -> FusedLinear | None:
    """Return the service's form for these tensors; None where it is not there or not for them."""
    if hidden.device.type not in _DEVICES or weight.device != hidden.device:
        return None
    if hidden.dtype not in _TYPES or weight.dtype != hidden.dtype:
        return None
    if importlib.util.find_spec("scoring_service") is None:
        return None
    if importlib.util.find_spec(MODULE) is None:
        return None
    module = importlib.import_module(MODULE)
    return cast(FusedLinear, module.linear_processed_logprobs)
