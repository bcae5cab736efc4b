"""Norms, activations and rotary positions of a body in one pass each, instead of two to ten.

A module is recognised by trying: if the fused form of what its name promises gives what it gives
on random numbers, it takes its place; otherwise the module stays as it is.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from scoring_service.engine.fused.gate import fused_gate
from scoring_service.engine.fused.norm import fused_norm
from scoring_service.engine.fused.residuals import add_fused
from scoring_service.engine.fused.rotary import Rotary, fused_rotary
from scoring_service.engine.fused.trials import Trials
from scoring_service.kernels.body import BodyKernels

_FORWARD = "forward"


@dataclass
class Fused:
    """What kernels do of a network."""

    rotary: Rotary | None = None
    """The rotary function of its layers, to be switched during a forward."""
    kernels: tuple[str, ...] = ()
    """Names of those that are used."""
    note: str = ""
    """Which were given up, and why, to stand behind a reason."""
    _before: list[tuple[nn.Module, Any]] = field(default_factory=list)
    """Modules, and the forward that each had of its own, in order."""

    def in_a_step(self) -> AbstractContextManager[None]:
        """What is switched for a packed forward only."""
        return nullcontext() if self.rotary is None else self.rotary.fused()

    def replace(self, module: nn.Module, forward: Callable[..., Tensor]) -> None:
        """Lets a module compute in another way."""
        self._before.append((module, module.__dict__.get(_FORWARD)))
        module.__dict__[_FORWARD] = forward

    def undo(self) -> None:
        """Leaves every module as it was."""
        for module, forward in reversed(self._before):
            if forward is None:
                del module.__dict__[_FORWARD]
            else:
                module.__dict__[_FORWARD] = forward
        self._before.clear()
        self.rotary, self.kernels = None, ()


def fuse_layers(network: Any, kernels: BodyKernels, residual_dtype: torch.dtype) -> Fused:
    """Lets norms and gated activations of a network use the kernels, until that is undone.

    Args:
        network: transformers' own.
        kernels: that are there.
        residual_dtype: of what enters and leaves its layers.
    """
    fused = Fused()
    if not kernels.takes(network.dtype):
        return fused
    trials = Trials(kernels)
    for module in network.modules():
        forward = fused_norm(module, trials, residual_dtype) or fused_gate(module, trials)
        if forward is not None:
            fused.replace(module, forward)
    for module in network.modules():
        fused_layer = add_fused(module, trials, network.dtype, residual_dtype)
        if fused_layer is not None:
            fused.replace(module, fused_layer)
    fused.rotary = fused_rotary(network, trials)
    fused.kernels, fused.note = tuple(sorted(trials.used)), trials.note()
    return fused
