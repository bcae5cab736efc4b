"""Kernels tried in the place of a module: whether they give what it gives, or fail, or err."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from scoring_service.kernels.body import BodyKernels, EagerBody

ROWS = 32
"""Random rows that a kernel is tried on."""

Compute = Callable[[BodyKernels], Sequence[Tensor]]
"""Numbers, by these kernels."""


class Trials:
    """Remembers what was tried: a kernel that failed or erred is not asked again.

    Attributes:
        kernels: that are tried.
        used: names of those that agreed.
        failures: why others are not used: they do not compile, do not start, or differ where the
            same in plain torch does not.
    """

    def __init__(self, kernels: BodyKernels) -> None:
        self.kernels = kernels
        self.used: set[str] = set()
        self.failures: dict[str, str] = {}

    def agree(self, name: str, compute: Compute, expected: Sequence[Tensor]) -> bool:
        """Whether a kernel gives what a module gives.

        Args:
            name: of the kernel, and what it is compiled for.
            compute: what the kernel is to give.
            expected: the module's own.
        """
        if name in self.failures:
            return False
        with torch.inference_mode():
            try:
                agrees = self._all_close(compute(self.kernels), expected)
                differs = not agrees and self._all_close(compute(EagerBody()), expected)
            except Exception as error:  # noqa: BLE001 - whatever it is, the module does without
                self.failures[name] = first_line(error)
                return False
        if agrees:
            self.used.add(name)
        elif differs:
            self.failures[name] = "it differs from torch's operators"
        return agrees

    def note(self) -> str:
        """What was given up, to stand behind a reason."""
        language = self.kernels.language
        return "".join(
            f"; without the {language} kernel {name}: {reason}"
            for name, reason in self.failures.items()
        )

    def _all_close(self, found: Sequence[Tensor], expected: Sequence[Tensor]) -> bool:
        share = self.kernels.equal_share
        return all(close(ours, own, share) for ours, own in zip(found, expected, strict=True))


OTHER_KIND = (TypeError, ValueError, RuntimeError, IndexError, AttributeError)
"""What modules raise that are tried for another kind than they are of."""


def first_line(error: Exception) -> str:
    """Of what an error says."""
    lines = str(error).splitlines() or [type(error).__name__]
    return lines[0][:200]


def random_rows(shape: tuple[int, ...], like: Tensor, dtype: torch.dtype) -> Tensor:
    """The same ones each time, where `like` is."""
    generator = torch.Generator().manual_seed(0)
    return (3 * torch.randn(shape, generator=generator)).to(device=like.device, dtype=dtype)


def close(found: Tensor, expected: Tensor, equal_share: float = 0.0) -> bool:
    """Equal but for a unit in the last place here and there.

    Args:
        found: any shape.
        expected: the same shape and type, else they are not equal.
        equal_share: of half-precision numbers that have to be equal to the bit: what is rounded at
            another place is not, though it is as near.
    """
    if found.shape != expected.shape or found.dtype != expected.dtype:
        return False
    if found.dtype != torch.float32 and (found == expected).float().mean() < equal_share:
        return False
    last_place = 2 * torch.finfo(expected.dtype).eps
    error = (found.float() - expected.float()).norm()
    return bool(error <= last_place * expected.float().norm())
