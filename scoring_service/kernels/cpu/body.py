"""The C++ kernels as those of a body."""

from __future__ import annotations

import torch
from torch import Tensor

from scoring_service.kernels.body import GateForm, NormForm
from scoring_service.kernels.cpu.ops import CpuKernels


class CpuBody:
    """`kernels.body.BodyKernels` of the C++ kernels."""

    language = "C++"
    norms = (NormForm.ROUNDED, NormForm.OFFSET)
    gates = (GateForm.SILU,)
    equal_share = 0.0
    """Norms that are rounded once are taken as well: nearer to the exact numbers or as near."""
    adds_before_norms = False

    def __init__(self, kernels: CpuKernels) -> None:
        self._kernels = kernels

    def takes(self, dtype: torch.dtype) -> bool:
        """Whether the kernels work on such numbers."""
        return self._kernels.takes(dtype)

    def norm(self, form: NormForm, rows: Tensor, weight: Tensor, eps: float) -> Tensor:
        """As `BodyKernels` has it."""
        return self._kernels.rms_norm(rows, weight, eps, form is NormForm.OFFSET)

    def add_rows(self, residual: Tensor, rows: Tensor, into: Tensor | None = None) -> Tensor:
        """As `BodyKernels` has it, to a residual in fp32."""
        return self._kernels.add_rows(residual, rows, into)

    def add_norm(
        self, form: NormForm, residual: Tensor, rows: Tensor, weight: Tensor, eps: float
    ) -> tuple[Tensor, Tensor]:
        """As `BodyKernels` has it, to a residual in fp32."""
        total = self.add_rows(residual, rows)
        return total, self.norm(form, total, weight, eps)

    def gate(self, form: GateForm, gate: Tensor, up: Tensor) -> Tensor:
        """As `BodyKernels` has it.

        Raises:
            ValueError: another activation than SiLU.
        """
        if form is not GateForm.SILU:
            raise ValueError(f"there is no C++ kernel {form.value}")
        return self._kernels.silu_mul(gate, up)

    def rotate(
        self, q: Tensor, k: Tensor, cos_T_D: Tensor, sin_T_D: Tensor
    ) -> tuple[Tensor, Tensor]:
        """As `BodyKernels` has it."""
        return (
            self._kernels.rotate(q, cos_T_D, sin_T_D),
            self._kernels.rotate(k, cos_T_D, sin_T_D),
        )
