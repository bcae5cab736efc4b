"""fp32 products of whole factors, whatever the process asked torch for.

`torch.set_float32_matmul_precision("high")`, as trainers set it, rounds factors of fp32 products to
TF32's 10 bits of mantissa on a GPU; "medium" rounds them to bfloat16 on CPUs that multiply it.
Log-probs are off by 4e-3 then, and supports are others than the sampler's.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

_WHOLE = ("ieee", "none", "highest")
"""Settings under which factors are taken as they are; the last is the older name."""

_lock = threading.Lock()
_inside = {"cpu": 0, "cuda": 0}
_before: dict[str, str] = {}
"""What the first of those inside found, to be put back by the last; nothing where it may stay."""


@contextmanager
def whole_factors(kind: str) -> Iterator[None]:
    """A context in which fp32 products on "cpu" or "cuda" round no factors.

    The setting is the process's: it holds for other threads meanwhile, and those that are inside at
    the same time leave it on until the last is through.
    """
    if kind not in _inside:
        yield
        return
    with _lock:
        found = _read(kind)
        if found not in _WHOLE:
            _before[kind] = found
            _write(kind, "ieee")
        _inside[kind] += 1
    try:
        yield
    finally:
        with _lock:
            _inside[kind] -= 1
            if not _inside[kind] and kind in _before:
                _write(kind, _before.pop(kind))


def _read(kind: str) -> str:
    """Never `allow_tf32`: to read that raises once the precision was set by its newer name."""
    matmul = _matmul(kind)
    return torch.get_float32_matmul_precision() if matmul is None else str(matmul.fp32_precision)


def _write(kind: str, setting: str) -> None:
    matmul = _matmul(kind)
    if matmul is None:
        torch.set_float32_matmul_precision("highest" if setting == "ieee" else setting)
    else:
        matmul.fp32_precision = setting


def _matmul(kind: str) -> Any:
    """Whose `fp32_precision` decides from torch 2.9 on; None before."""
    of_kind = torch.backends.cuda if kind == "cuda" else torch.backends.mkldnn
    matmul = getattr(of_kind, "matmul", None)
    return matmul if hasattr(matmul, "fp32_precision") else None
