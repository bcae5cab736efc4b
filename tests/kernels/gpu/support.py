"""Parameters of rows and supports in the form that tests compare."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from scoring_service.kernels.gpu.tile import Support, TritonTile, ordered_keys
from tests.kernels.cases import Setting
from tests.kernels.gpu.device import DEVICE


def row_parameters(settings: Sequence[Setting]) -> tuple[Tensor, Tensor, Tensor]:
    """top-k, top-p and min-p of rows, each with its own."""
    return (
        torch.tensor([max(s.top_k, 0) for s in settings], device=DEVICE),
        torch.tensor([s.top_p for s in settings], dtype=torch.float64, device=DEVICE),
        torch.tensor([s.min_p for s in settings], dtype=torch.float64, device=DEVICE),
    )


def support_mask(tile: TritonTile, found: Support) -> Tensor:
    """The support as bool [T, V]."""
    keys_T_V = ordered_keys(tile.x_T_V.float())
    ids_V = torch.arange(keys_T_V.shape[1], device=DEVICE)[None]
    at_pivot = (keys_T_V == found.pivots_T[:, None]) & (ids_V >= found.least_ids_T[:, None])
    return (keys_T_V > found.pivots_T[:, None]) | at_pivot
