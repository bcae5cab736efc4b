"""Norms of a body in one pass."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from scoring_service.engine.fused.trials import OTHER_KIND, ROWS, Trials, random_rows
from scoring_service.kernels.body import BodyKernels, NormForm

_SMALL = 1e-3
"""What half of the random rows are multiplied by: there the eps of a norm shows."""


class FusedNorm:
    """The forward of a norm by a kernel."""

    def __init__(
        self,
        kernels: BodyKernels,
        module: Any,
        form: NormForm,
        eps: float,
        taken: set[torch.dtype],
    ) -> None:
        """Works from then on.

        Args:
            kernels: that do it.
            module: the norm, whose weight may change.
            form: of the norm.
            eps: of the norm.
            taken: types of rows that were tried; others go the module's own way.
        """
        self._kernels = kernels
        self._module = module
        self._form = form
        self._eps = eps
        self._taken = taken
        self._own: Callable[[Tensor], Tensor] = module.forward

    def __call__(self, rows: Tensor) -> Tensor:
        """The norm of rows [..., H]."""
        if rows.dtype not in self._taken:
            return self._own(rows)
        return self._kernels.norm(self._form, rows, self._module.weight, self._eps)

    def adds(self, trials: Trials, residual_dtype: torch.dtype) -> bool:
        """Whether `of_sum` gives what a sum and the module's own norm give."""
        weight: Tensor = self._module.weight
        residual, rows = (
            random_rows((1, ROWS, len(weight)), weight, dtype)
            for dtype in (residual_dtype, weight.dtype)
        )
        with torch.inference_mode():
            rows = rows.flip(1)
            total = residual + rows
            expected = [total, self._own(total)]

        def compute(kernels: BodyKernels) -> tuple[Tensor, Tensor]:
            return kernels.add_norm(self._form, residual, rows, weight, self._eps)

        return trials.agree(f"add_{self._form.value} of {len(weight)}", compute, expected)

    def of_sum(self, residual: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        """residual + rows, and the norm of that."""
        if residual.dtype not in self._taken:
            total = residual + rows
            return total, self._own(total)
        return self._kernels.add_norm(self._form, residual, rows, self._module.weight, self._eps)


def fused_norm(module: Any, trials: Trials, residual_dtype: torch.dtype) -> FusedNorm | None:
    """The fused form of a module, if it is a norm that the kernels know.

    Args:
        module: perhaps one.
        trials: of the kernels.
        residual_dtype: of what enters and leaves layers.
    """
    if not type(module).__name__.endswith("RMSNorm"):
        return None
    weight = getattr(module, "weight", None)
    eps = getattr(module, "variance_epsilon", getattr(module, "eps", None))
    if not isinstance(weight, Tensor) or weight.dim() != 1 or not isinstance(eps, float):
        return None
    if not trials.kernels.takes(weight.dtype):
        return None
    types = sorted({weight.dtype, residual_dtype}, key=str)
    width = len(weight)
    tried = [random_rows((1, ROWS, width), weight, dtype) for dtype in types]
    for rows in tried:
        rows[:, ROWS // 2 :] *= _SMALL
    with torch.inference_mode():
        try:
            expected = [module(rows) for rows in tried]
        except OTHER_KIND:
            return None

    for form in trials.kernels.norms:

        def compute(kernels: BodyKernels, form: NormForm = form) -> list[Tensor]:
            return [kernels.norm(form, rows, weight, eps) for rows in tried]

        if trials.agree(f"{form.value} of {width}", compute, expected):
            return FusedNorm(trials.kernels, module, form, eps, set(types))
    return None
