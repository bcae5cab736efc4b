"""Which compilations launches ask for: by what Triton's JIT looks at in their arguments.

It compiles a kernel anew for other types and constants, for integers that are 1, that 16 divides or
that need 64 bits, and for tensors that begin at a multiple of 16 bytes, save where a kernel says
`do_not_specialize` or `do_not_specialize_on_alignment`.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch

from scoring_service.kernels.gpu.statistics import combine

Variant = tuple[str, tuple[Any, ...]]
"""A kernel, and what its compilation depends on."""


@contextmanager
def recorded(variants: set[Variant]) -> Iterator[None]:
    """Adds what every launch asks for, in the interpreter and compiled."""
    kind = type(combine)
    run = kind.run

    def noting(kernel: Any, *arguments: Any, **options: Any) -> Any:
        given = dict(zip(kernel.arg_names, arguments, strict=False))
        constants = {name: options[name] for name in kernel.arg_names if name in options}
        plain, anyhow = exempt(kernel)
        facts = [
            (name, depends_on(value, name in plain, name in anyhow))
            for name, value in given.items()
        ]
        variants.add((kernel.__name__, (*facts, *sorted(constants.items()))))
        return run(kernel, *arguments, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kind, "run", noting)
        yield


def exempt(kernel: Any) -> tuple[set[str], set[str]]:
    """Arguments whose value, and those whose alignment, leave the compilation alone."""
    if hasattr(kernel, "params"):
        plain = {p.name for p in kernel.params if p.do_not_specialize}
        return plain, {p.name for p in kernel.params if p.do_not_specialize_on_alignment}
    names = ("do_not_specialize", "do_not_specialize_on_alignment")
    return tuple(set(kernel.kwargs[name] or ()) for name in names)  # type: ignore[return-value]


def depends_on(value: Any, plain: bool, anyhow: bool) -> Any:
    """What of an argument another compilation depends on."""
    if isinstance(value, torch.Tensor):
        return value.dtype, anyhow or value.data_ptr() % 16 == 0
    if isinstance(value, int):
        wide = not -(2**31) <= value < 2**31
        return (wide,) if plain else (wide, value == 1, anyhow or value % 16 == 0)
    return type(value)
