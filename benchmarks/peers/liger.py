"""Liger-Kernel's fused linear cross-entropy: the log-probs of targets, no entropy and no rank."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from benchmarks.gpu_timing import Work

DISTRIBUTION = "liger-kernel"


def make(hidden: Sequence[Tensor], weight_V_H: Tensor, targets_T: Tensor) -> Work:
    """Its forward pass, without gradients of its inputs, as it is called for log-probs alone."""
    from liger_kernel.ops.fused_linear_cross_entropy import fused_linear_cross_entropy_forward

    return lambda n: fused_linear_cross_entropy_forward(
        hidden[n], weight_V_H, targets_T, reduction="none"
    )
