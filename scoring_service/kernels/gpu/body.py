"""The Triton kernels of a body."""

from __future__ import annotations

import torch
from torch import Tensor

from scoring_service.kernels.body import GateForm, NormForm
from scoring_service.kernels.gpu import gated_activation, rms_norm, rotary

_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


class TritonBody:
    """`kernels.body.BodyKernels` of one launch each."""

    language = "Triton"
    norms = tuple(NormForm)
    gates = tuple(GateForm)
    equal_share = 0.95
    adds_before_norms = True

    def takes(self, dtype: torch.dtype) -> bool:
        """Whether the kernels are compiled for such numbers."""
        return dtype in _DTYPES

    def norm(self, form: NormForm, rows: Tensor, weight: Tensor, eps: float) -> Tensor:
        """As `BodyKernels` has it.

        Raises:
            ValueError: rows that are too wide.
        """
        return rms_norm.rms_norm(form, rows, weight, eps)[1]

    def add_rows(self, residual: Tensor, rows: Tensor, into: Tensor | None = None) -> Tensor:
        """As `BodyKernels` has it: torch's operator, which is one launch for any two types."""
        return torch.add(residual, rows, out=into)

    def add_norm(
        self, form: NormForm, residual: Tensor, rows: Tensor, weight: Tensor, eps: float
    ) -> tuple[Tensor, Tensor]:
        """As `BodyKernels` has it.

        Raises:
            ValueError: rows that are too wide.
        """
        return rms_norm.rms_norm(form, residual, weight, eps, rows)

    def gate(self, form: GateForm, gate: Tensor, up: Tensor) -> Tensor:
        """As `BodyKernels` has it."""
        return gated_activation.gated_activation(form, gate, up)

    def rotate(
        self, q: Tensor, k: Tensor, cos_T_D: Tensor, sin_T_D: Tensor
    ) -> tuple[Tensor, Tensor]:
        """As `BodyKernels` has it.

        Raises:
            ValueError: heads of an odd or too large width.
        """
        return rotary.rotate(q, k, cos_T_D, sin_T_D)
