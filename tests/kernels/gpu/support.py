"""Supports in the form that tests compare, and how they compare them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from scoring_service.kernels import reference
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


def assert_like_reference(x_T_V: Tensor, row_settings: Sequence[Setting]) -> None:
    """Supports to the token, their sizes, and masses within 2e-6, each row with its own setting."""
    tile = TritonTile(x_T_V)
    found = tile.support(*row_parameters(row_settings))
    keep_T_V = support_mask(tile, found)
    for row, setting in enumerate(row_settings):
        x_1_V = x_T_V[row : row + 1]
        want_1_V = reference.support(x_1_V, **setting.truncation)
        assert torch.equal(keep_T_V[row : row + 1], want_1_V), f"row {row}: {setting}"
        assert found.sizes_T[row] == want_1_V.sum()
        want_1 = reference.log_kept_mass(x_1_V, reference.logsumexp(x_1_V), want_1_V)
        assert abs(found.log_kept_mass_T[row] - want_1[0]) <= 2e-6
