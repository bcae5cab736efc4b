"""What a figure should be, and whether it is: targets of speed, and checks of what was computed.

A target that is missed is a finding, and comes with the profile that says why. A check that does
not hold is a fault: the figure is of wrong numbers, and the program that made it ends with 1.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from benchmarks.gpu_cases import Figure
from benchmarks.gpu_timing import Work, profile


@dataclass(frozen=True)
class Target:
    """What a figure should be, and whether it is."""

    what: str
    wanted: str
    got: float | None
    met: bool | None
    """None where it could not be measured."""


def at_most(what: str, got: float | None, bound: float) -> Target:
    """Not above the bound; of no number, NaN, that is never so."""
    return Target(what, f"<= {bound:.6g}", got, None if got is None else got <= bound)


def at_least(what: str, got: float | None, bound: float) -> Target:
    """Not below the bound."""
    return Target(what, f">= {bound:.6g}", got, None if got is None else got >= bound)


def judged(targets: Iterable[Target], checks: Iterable[Target], work: Work) -> Figure:
    """Targets and checks, and the profile that says why where a target is missed."""
    listed = list(targets)
    found: Figure = {
        "targets": [asdict(target) for target in listed],
        "checks": [asdict(check) for check in checks],
    }
    if any(target.met is False for target in listed):
        found["profile"] = profile(work)
    return found


def is_wrong(figure: dict[str, Any]) -> bool:
    """Whether a case failed, or left numbers that are not right."""
    return "failed" in figure or any(not check["met"] for check in figure.get("checks", []))


def errors_within(
    what: str, found_T: Tensor, eager_T: Tensor, truth_T: Tensor, allowance: float = 1e-5
) -> Target:
    """The largest error against float64, beside that of plain fp32, as the kernels' tests have it.

    Args:
        what: the numbers are.
        found_T: by the kernel, any shape.
        eager_T: by torch's operators in float32.
        truth_T: in float64.
        allowance: beyond the error of those operators.
    """
    error = float((found_T.double() - truth_T).abs().max())
    bound = float((eager_T.double() - truth_T).abs().max()) + allowance
    return at_most(f"error of {what}", error, bound)


def ranks_within(
    what: str, ranks_T: Tensor, x_T_V: Tensor, ids_T: Tensor, rounding: float
) -> Target:
    """How many ranks are not the target's, however x is rounded.

    Args:
        what: the ranks are.
        ranks_T: by the kernel.
        x_T_V: float64, or float32 where the kernel read the same.
        ids_T: int64, the targets.
        rounding: that tokens may move by beside the target; 0 = the kernel read this x, so that
            ranks are exact, and ties go to the lower id.
    """
    target_T_1 = x_T_V.gather(1, ids_T[:, None])
    earlier_T_V = torch.arange(x_T_V.shape[1], device=x_T_V.device) < ids_T[:, None]
    ties_T = ((x_T_V == target_T_1) & earlier_T_V).sum(dim=1)
    if rounding:
        least_T = 1 + (x_T_V > target_T_1 + rounding).sum(dim=1)
        most_T = (x_T_V >= target_T_1 - rounding).sum(dim=1)
    else:
        least_T = most_T = 1 + (x_T_V > target_T_1).sum(dim=1) + ties_T
    wrong = int(((ranks_T < least_T) | (ranks_T > most_T)).sum())
    return at_most(f"{what} that are not the target's", wrong, 0)
