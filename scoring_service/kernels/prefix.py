"""Supports as prefixes of one order: the least x kept, and the least id kept at that x.

Truncation keeps a prefix of the tokens by descending x, and among equal x by descending id, so two
numbers a row say what a mask of V says. Legend: T rows, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Integral
from typing import Any

import numpy as np
import torch
from torch import Tensor

from scoring_service.kernels import dispatch, eager, reference


@dataclass(frozen=True, slots=True)
class Prefix:
    """What truncation keeps of each row."""

    least_x_T: Tensor
    """float32."""
    least_id_T: Tensor
    """int64: at the least x, ids from this one on."""
    log_total_T: Tensor
    """float64: log of the sum of exp(x) over what is kept."""


@dataclass(frozen=True, slots=True)
class RowTruncation:
    """Parameters of each row."""

    top_k_T: Tensor
    """int64; 0 = off."""
    top_p_T: Tensor
    """float64; 1 = off."""
    min_p_T: Tensor
    """float64; 0 = off."""

    @classmethod
    def of(
        cls,
        top_k: int | Tensor | None,
        top_p: float | Tensor | None,
        min_p: float | Tensor | None,
        rows: int,
        vocab: int,
        device: torch.device,
    ) -> RowTruncation:
        """Parameters as callers give them: of all rows or [T]; None = off, as 0, -1 and V or more
        are for top-k.

        Raises:
            ValueError: a tensor with neither one value nor one for each row; a top-k of fractions;
                where it can be looked at without waiting for a device, a top-k below -1, or a share
                outside of [0, 1].
        """
        top_k = 0 if top_k is None else top_k
        check_integers("top_k", top_k, least=-1)
        if not isinstance(top_k, Tensor):
            top_k = min(top_k, vocab)
        check_range("top_p", top_p, least=0.0, most=1.0)
        check_range("min_p", min_p, least=0.0, most=1.0)
        top_k_T = row_values(top_k, rows, torch.int64, device)
        return cls(
            top_k_T.masked_fill((top_k_T < 0) | (top_k_T >= vocab), 0),
            row_values(1.0 if top_p is None else top_p, rows, torch.float64, device),
            row_values(0.0 if min_p is None else min_p, rows, torch.float64, device),
        )

    def of_rows(self, which: slice | Tensor) -> RowTruncation:
        """Those of some rows."""
        return RowTruncation(self.top_k_T[which], self.top_p_T[which], self.min_p_T[which])

    def filters(self) -> Tensor:
        """Which rows anything truncates, bool [T]."""
        return (self.top_k_T > 0) | (self.top_p_T < 1.0) | (self.min_p_T > 0.0)


def check_range(
    name: str,
    value: float | Tensor | None,
    *,
    above: float = -math.inf,
    least: float = -math.inf,
    most: float = math.inf,
) -> None:
    """Looks at a parameter, unless it lies on a device: that would wait for all that it does.

    Raises:
        ValueError: `above` < value, `least` <= value <= `most` does not hold for each; so it is of
            NaN and infinities.
    """
    if value is None or (isinstance(value, Tensor) and value.device.type != "cpu"):
        return
    values_T = torch.as_tensor(value, dtype=torch.float64).reshape(-1)
    within_T = (values_T > above) & (values_T >= least) & (values_T <= most)
    wrong_T = ~(within_T & values_T.isfinite())
    if bool(wrong_T.any()):
        lower = f"above {above:g}" if above > -math.inf else f"at least {least:g}"
        upper = f" and at most {most:g}" if most < math.inf else " and finite"
        raise ValueError(f"{name} must be {lower}{upper}, got {float(values_T[wrong_T][0]):g}")


def check_integers(
    name: str, values: int | Sequence[int] | Tensor, *, least: int, most: int | None = None
) -> None:
    """Looks at whole numbers, which a tensor's type would else cut off or wrap; at those that lie
    on a device for their type alone: more would wait for all that it does.

    Raises:
        ValueError: there are fractions, or `least` <= value <= `most` does not hold for each.
    """
    if isinstance(values, Tensor):
        if values.is_floating_point():
            raise ValueError(f"{name} must be an integer, got {values.dtype}")
        if values.device.type != "cpu":
            return
        values = values.reshape(-1).tolist()
    many: Any = values if isinstance(values, Sequence | np.ndarray) else [values]
    for value in many:
        if not isinstance(value, Integral):
            raise ValueError(f"{name} must be an integer, got {value}")
        number = int(value)
        if number < least or (most is not None and number > most):
            upper = "" if most is None else f" and at most {most}"
            raise ValueError(f"{name} must be at least {least}{upper}, got {number}")


def row_values(
    value: float | Tensor, rows: int, dtype: torch.dtype, device: torch.device
) -> Tensor:
    """A parameter of all rows, or of each, as [T].

    Raises:
        ValueError: a tensor with neither one value nor one for each row.
    """
    if isinstance(value, Tensor):
        if value.shape not in ((), (1,), (rows,)):
            raise ValueError(f"a parameter has shape {list(value.shape)}: not [{rows}]")
        return value.to(device=device, dtype=dtype).expand(rows)
    # As on the wire: a number is rounded to fp32, and promoted from there.
    number = torch.tensor(value, dtype=torch.int64 if dtype == torch.int64 else torch.float32)
    # Filled there: a copy from the host would wait for all that the device does.
    return torch.full((), number.item(), dtype=dtype, device=device).expand(rows)


def row_temperatures(value: float | Tensor, rows: int, device: torch.device) -> Tensor:
    """Temperatures as float32 [T].

    Raises:
        ValueError: a tensor with neither one value nor one for each row; one that is not above 0
            and finite, where it can be looked at without waiting for a device.
    """
    temperature_T = row_values(value, rows, torch.float32, device)
    if rows:
        # As rows are divided by them: what is above 0 in float64 may be 0 in fp32, or infinite.
        check_range("temperature", torch.as_tensor(value, dtype=torch.float32), above=0.0)
    return temperature_T


def kept(x_T_V: Tensor, prefix: Prefix) -> Tensor:
    """The support as bool [T, V]."""
    ids_V = torch.arange(x_T_V.shape[1], device=x_T_V.device)
    at_least_x_T_V = x_T_V == prefix.least_x_T[:, None]
    at_least_x_T_V &= ids_V >= prefix.least_id_T[:, None]
    return at_least_x_T_V.logical_or_(x_T_V > prefix.least_x_T[:, None])


def prefixes(x_T_V: Tensor, truncation: RowTruncation) -> Prefix:
    """The support of each row, in exact arithmetic: what the server's own truncation keeps.

    Args:
        x_T_V: float32, divided by the temperature.
        truncation: of each row.
    """
    if dispatch.backend(x_T_V.device) == "triton":
        # Imported where a CUDA device is, and nowhere else.
        from scoring_service.kernels.gpu.tile import TritonTile, least_x

        tile = TritonTile(x_T_V)
        found = tile.support(truncation.top_k_T, truncation.top_p_T, truncation.min_p_T)
        log_total_T = tile.logsumexp_T + found.log_kept_mass_T
        return Prefix(least_x(found), found.least_ids_T.long(), log_total_T)
    rows, device = len(x_T_V), x_T_V.device
    result = Prefix(
        torch.empty(rows, device=device),
        torch.empty(rows, dtype=torch.int64, device=device),
        torch.empty(rows, dtype=torch.float64, device=device),
    )
    settings_T_3 = torch.stack(
        [truncation.top_k_T.double(), truncation.top_p_T, truncation.min_p_T], dim=1
    )
    # Rows of one setting are computed together: few settings share a batch.
    settings, which_T = settings_T_3.unique(dim=0, return_inverse=True)
    for number, (top_k, top_p, min_p) in enumerate(settings.tolist()):
        rows_R = torch.nonzero(which_T == number)[:, 0]
        found_R = _prefixes_of_one_setting(x_T_V[rows_R], int(top_k), top_p, min_p)
        result.least_x_T[rows_R] = found_R.least_x_T
        result.least_id_T[rows_R] = found_R.least_id_T
        result.log_total_T[rows_R] = found_R.log_total_T
    return result


def _prefixes_of_one_setting(x_T_V: Tensor, top_k: int, top_p: float, min_p: float) -> Prefix:
    vocab = x_T_V.shape[1]
    if not (0 < top_k < vocab or top_p < 1.0 or min_p > 0.0):
        least_x_T = torch.full((len(x_T_V),), -math.inf, device=x_T_V.device)
        # Tokens at -inf are not kept: no id of theirs is high enough.
        least_id_T = torch.full_like(least_x_T, vocab, dtype=torch.int64)
        return Prefix(least_x_T, least_id_T, reference.logsumexp(x_T_V))
    found, decided_T = eager.support(x_T_V, top_k, top_p, min_p)
    x_T_M = x_T_V.gather(1, found.ids_T_M)
    prefix = _from_mask(x_T_M, found.ids_T_M, found.keep_T_M)
    left = torch.nonzero(~decided_T)[:, 0]
    if len(left):
        # What the candidates do not decide is the reference's.
        x_L_V = x_T_V[left]
        ids_L_V = torch.arange(vocab, device=x_T_V.device).expand(len(left), -1)
        whole = _from_mask(x_L_V, ids_L_V, reference.support(x_L_V, top_k, top_p, min_p))
        prefix.least_x_T[left] = whole.least_x_T
        prefix.least_id_T[left] = whole.least_id_T
        prefix.log_total_T[left] = whole.log_total_T
    return prefix


def _from_mask(x_T_M: Tensor, ids_T_M: Tensor, keep_T_M: Tensor) -> Prefix:
    least_x_T = x_T_M.masked_fill(~keep_T_M, math.inf).amin(dim=1)
    at_least_x_T_M = keep_T_M & (x_T_M == least_x_T[:, None])
    no_id = torch.iinfo(torch.int64).max
    least_id_T = ids_T_M.masked_fill(~at_least_x_T_M, no_id).amin(dim=1)
    total_T = reference.logsumexp(x_T_M.masked_fill(~keep_T_M, -math.inf))
    return Prefix(least_x_T, least_id_T, total_T)
