"""What stands between a layer's products: one Triton launch each, beside torch's operators."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from benchmarks.gpu_cases import Case, Figure
from benchmarks.gpu_judging import at_least, judged
from benchmarks.gpu_sizes import Sizes, normal
from benchmarks.gpu_timing import Sides, buffers_for, profile
from benchmarks.limits import least_seconds

HEADS, KV_HEADS, WIDTH = 16, 8, 128
"""As in `gpu_attention`."""

_EPS = 1e-6
_MIN_EQUAL = 0.95
"""Share of numbers that have the bits of torch's operators, as loading asks for."""

Compute = Callable[[Any, Sequence[Tensor]], Sequence[Tensor]]
"""A case by a body's kernels, or by their twin."""


def body(sizes: Sizes, device: str, limits: dict[str, Any]) -> Iterator[Case]:
    """Of one layer: a full step's rows, and those of 64 samples."""
    for rows in (sizes.rows, min(64, sizes.rows)):
        for name, (compute, shapes, share) in _cases(rows, sizes.hidden).items():
            what = f"{name}, {rows} rows"
            yield what, partial(body_figure, what, compute, shapes, share, device, limits)


def _cases(rows: int, hidden: int) -> dict[str, tuple[Compute, Sequence[tuple[int, ...]], float]]:
    """Work, shapes of what it is given, and bytes written for each that is read."""
    from scoring_service.kernels.body import GateForm, NormForm

    def norm(kernels: Any, given: Sequence[Tensor]) -> Sequence[Tensor]:
        return [kernels.norm(NormForm.ROUNDED, given[0], given[1], _EPS)]

    def add_norm(kernels: Any, given: Sequence[Tensor]) -> Sequence[Tensor]:
        found: Sequence[Tensor] = kernels.add_norm(NormForm.ROUNDED, *given, _EPS)
        return found

    def gate(kernels: Any, given: Sequence[Tensor]) -> Sequence[Tensor]:
        return [kernels.gate(GateForm.SILU, *given)]

    def rotate(kernels: Any, given: Sequence[Tensor]) -> Sequence[Tensor]:
        q, k, cos, sin = given
        found: Sequence[Tensor] = kernels.rotate(q.transpose(0, 1), k.transpose(0, 1), cos, sin)
        return found

    wide, inner, table = (rows, hidden), (rows, 3 * hidden), (rows, WIDTH)
    heads = [(rows, count, WIDTH) for count in (HEADS, KV_HEADS)]
    return {
        "norm": (norm, [wide, (hidden,)], 1.0),
        "sum and norm": (add_norm, [wide, wide, (hidden,)], 1.0),
        "norm of heads": (norm, [heads[0], (WIDTH,)], 1.0),
        "SiLU and product": (gate, [inner, inner], 0.5),
        "rotation": (rotate, [*heads, table, table], 1.0),
    }


def body_figure(
    what: str,
    compute: Compute,
    shapes: Sequence[tuple[int, ...]],
    share: float,
    device: str,
    limits: dict[str, Any],
) -> Figure:
    from scoring_service.kernels.body import EagerBody
    from scoring_service.kernels.gpu.body import TritonBody

    read = sum(2 * torch.Size(shape).numel() for shape in shapes)
    moved = read * (1 + share)
    count = buffers_for(read)
    given = [
        [
            normal(shape, device, 10 * n + place, torch.bfloat16)
            for place, shape in enumerate(shapes)
        ]
        for n in range(count)
    ]

    def ours(n: int) -> Sequence[Tensor]:
        return compute(TritonBody(), given[n])

    sides = Sides(count)
    sides.ours("ours", ours)
    sides.peer("torch", lambda: lambda n: compute(EagerBody(), given[n]))
    equal = [
        float((found == want).float().mean())
        for found, want in zip(ours(0), compute(EagerBody(), given[0]), strict=True)
    ]
    checks = [at_least("share of torch's bits", min(equal), _MIN_EQUAL)]
    return {
        "what": what,
        "bytes": moved,
        "floor_seconds": least_seconds(0.0, moved, limits),
        "sides": sides.found,
        "times torch's speed": sides.speed_over("torch", "ours"),
        **judged([], checks, ours),
        "profile": profile(ours),
    }
