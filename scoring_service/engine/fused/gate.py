"""Gated activations of a body in one pass."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from scoring_service.engine.fused.trials import OTHER_KIND, ROWS, Trials, close, random_rows
from scoring_service.kernels.body import BodyKernels, GateForm

_PARTS = ("gate_proj", "up_proj", "down_proj")
_REACH, _POINTS = 6.0, 1025
"""Where activations are compared in float32: two that half precision cannot tell apart differ."""


def fused_gate(module: Any, trials: Trials) -> Callable[[Tensor], Tensor] | None:
    """The fused form of a module, if it is down(activation(gate(x)) * up(x)).

    Args:
        module: perhaps one.
        trials: of the kernels.
    """
    gate, up, down = (getattr(module, name, None) for name in _PARTS)
    activation = getattr(module, "act_fn", None)
    if not (
        isinstance(gate, torch.nn.Linear)
        and isinstance(up, torch.nn.Linear)
        and isinstance(down, torch.nn.Linear)
        and callable(activation)
        and trials.kernels.takes(gate.weight.dtype)
    ):
        return None
    rows = random_rows((1, ROWS, gate.in_features), gate.weight, gate.weight.dtype)
    # In a row, as any activation gets them: what it does with other shapes is its own affair.
    points = torch.linspace(-_REACH, _REACH, _POINTS, device=rows.device)[None]
    ones = torch.ones_like(points)
    with torch.inference_mode():
        try:
            inner, beside = gate(rows), up(rows)
            expected = [activation(points), activation(inner) * beside]
            if not close(down(expected[1]), module(rows)):
                return None
        except OTHER_KIND:
            return None

    for form in trials.kernels.gates:

        def compute(kernels: BodyKernels, form: GateForm = form) -> list[Tensor]:
            return [kernels.gate(form, points, ones), kernels.gate(form, inner, beside)]

        if trials.agree(f"{form.value} of {gate.out_features}", compute, expected):
            return partial(_forward, trials.kernels, form, gate, up, down)
    return None


def _forward(
    kernels: BodyKernels, form: GateForm, gate: Any, up: Any, down: Any, rows: Tensor
) -> Tensor:
    found: Tensor = down(kernels.gate(form, gate(rows), up(rows)))
    return found
