"""Whether states are the same but for rounding, computed in two ways."""

from __future__ import annotations

import torch
from torch import Tensor

_BOUND = {torch.float32: 1e-3}
_HALF_BOUND = 0.1
"""Of a state's error, relative."""


def states_agree(found_T_H: Tensor, expected_T_H: Tensor, dtype: torch.dtype) -> bool:
    """Whether most rows do.

    The median is bound, because rounding may send a token of a mixture to another expert.

    Args:
        found_T_H: in any type.
        expected_T_H: the same.
        dtype: what they were computed in.
    """
    found_T_H, expected_T_H = found_T_H.float(), expected_T_H.float()
    error_T = (found_T_H - expected_T_H).norm(dim=1) / expected_T_H.norm(dim=1)
    return bool(error_T.median() < _BOUND.get(dtype, _HALF_BOUND))
