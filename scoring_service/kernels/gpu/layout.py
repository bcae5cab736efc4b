"""Tensors as the kernels read them: a kernel is told where a tensor begins and how far apart rows
are, nothing else.

Legend: T rows.
"""

from __future__ import annotations

import torch
from torch import Tensor


def by_row(values_T: Tensor, rows: int, dtype: torch.dtype) -> Tensor:
    """One number a row, side by side, of the type that kernels are compiled for.

    Raises:
        ValueError: another shape than [T], or fractions where there are to be integers.
    """
    if values_T.shape != (rows,):
        raise ValueError(
            f"one number for each of {rows} rows is needed, not {list(values_T.shape)}"
        )
    if values_T.is_floating_point() and not dtype.is_floating_point:
        raise ValueError(f"integers are needed, not {values_T.dtype}")
    return values_T.to(dtype).contiguous()


def rows_contiguous(values_T_N: Tensor) -> Tensor:
    """Rows whose numbers are next to each other: the tensor itself where they are."""
    return values_T_N if values_T_N.stride(1) == 1 else values_T_N.contiguous()


def flat_rows(values: Tensor) -> Tensor:
    """[..., columns] as [N, columns], a row's numbers next to each other: a view if that can be."""
    return rows_contiguous(values.reshape(-1, values.shape[-1]))
