"""Rotary positions of a body in one pass."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from scoring_service.engine.fused.trials import OTHER_KIND, ROWS, Trials, random_rows
from scoring_service.kernels.body import BodyKernels

_NAME = "apply_rotary_pos_emb"
_WIDTH = 64
"""Of the heads of attention that does not tell."""

_Function = Callable[..., tuple[Tensor, Tensor]]


class Rotary:
    """The function of a model's file that turns queries and keys, and its fused form."""

    def __init__(self, namespace: Any, own: _Function, kernels: BodyKernels) -> None:
        self._namespace = namespace
        self._own = own
        self._kernels = kernels

    @contextmanager
    def fused(self) -> Iterator[None]:
        """Puts the fused form in the function's place for a while.

        Layers find the function in their own file's namespace: there is no other place to put it.
        """
        setattr(self._namespace, _NAME, self._rotate)
        try:
            yield
        finally:
            setattr(self._namespace, _NAME, self._own)

    def _rotate(
        self, q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, *rest: Any, **named: Any
    ) -> tuple[Tensor, Tensor]:
        plain = not rest and not named and q.shape[0] == 1 and q.dtype == k.dtype == cos.dtype
        if not plain or cos.shape != (1, q.shape[2], q.shape[3]) or k.shape[2:] != q.shape[2:]:
            return self._own(q, k, cos, sin, *rest, **named)
        turned_q, turned_k = self._kernels.rotate(q[0], k[0], cos[0], sin[0])
        return turned_q[None], turned_k[None]


def fused_rotary(network: Any, trials: Trials) -> Rotary | None:
    """The function of a network's layers, to be switched during a forward.

    Args:
        network: transformers' own.
        trials: of the kernels.

    Returns:
        None if there is none that the kernels can stand in for.
    """
    attentions = [m for m in network.modules() if type(m).__name__.endswith("Attention")]
    namespaces = {type(module).__module__ for module in attentions}
    if len(namespaces) != 1:
        return None
    namespace = sys.modules[namespaces.pop()]
    own = getattr(namespace, _NAME, None)
    if own is None:
        return None
    width = getattr(attentions[0], "head_dim", _WIDTH)
    width = width if isinstance(width, int) and width % 2 == 0 else _WIDTH
    if not _same_rotation(own, trials, next(network.parameters()), network.dtype, width):
        return None
    return Rotary(namespace, own, trials.kernels)


def _same_rotation(
    own: _Function, trials: Trials, like: Tensor, dtype: torch.dtype, width: int
) -> bool:
    q = random_rows((1, 3, ROWS, width), like, dtype)
    k = random_rows((1, 1, ROWS, width), like, dtype).flip(2)
    generator = torch.Generator().manual_seed(0)
    angles = 6.3 * torch.rand(1, ROWS, width // 2, generator=generator).repeat(1, 1, 2)
    cos, sin = (x.to(device=like.device, dtype=dtype) for x in (angles.cos(), angles.sin()))
    with torch.inference_mode():
        try:
            expected = own(q, k, cos, sin)
        except OTHER_KIND:
            return False  # another convention of arguments

    def compute(kernels: BodyKernels) -> list[Tensor]:
        return [turned[None] for turned in kernels.rotate(q[0], k[0], cos[0], sin[0])]

    return trials.agree(f"rotate of {width}", compute, expected)
