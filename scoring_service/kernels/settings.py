"""What rows of several settings have apart, where operators take rows alike."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import TypeVar

import torch
from torch import Tensor

from scoring_service.kernels.transfer import to_device_async

Setting = TypeVar("Setting", bound=Hashable)


def by_setting(
    settings_T: Sequence[Setting], compute: Callable[[Setting, list[int]], tuple[Tensor, ...]]
) -> tuple[Tensor, ...]:
    """Numbers of rows, each computed beside those of its own setting, in the order of the rows.

    Args:
        settings_T: what rows that are computed together have in common.
        compute: tensors [rows, ...] of a setting and the places of its rows.
    """
    places: dict[Setting, list[int]] = {}
    for place, setting in enumerate(settings_T):
        places.setdefault(setting, []).append(place)
    parts = [compute(setting, rows) for setting, rows in places.items()]
    if len(parts) == 1:
        return parts[0]
    order = torch.tensor([place for rows in places.values() for place in rows]).argsort()
    return tuple(rows_at(torch.cat(column), order.tolist()) for column in zip(*parts, strict=True))


def rows_at(values: Tensor, rows: list[int]) -> Tensor:
    """Rows of a tensor in an order; the tensor itself where that is its own."""
    if rows == list(range(len(values))):
        return values
    return values[to_device_async(torch.tensor(rows), values.device)]


def without_banned(x_T_V: Tensor, banned_T: Sequence[Sequence[int]]) -> Tensor:
    """A copy of x with each row's banned ids at -inf."""
    allowed_T_V = x_T_V.clone()
    banned = [(place, token) for place, ids in enumerate(banned_T) for token in ids]
    places_2_N = to_device_async(torch.tensor(banned, dtype=torch.int64), x_T_V.device).t()
    allowed_T_V[places_2_N[0], places_2_N[1]] = -torch.inf
    return allowed_T_V
