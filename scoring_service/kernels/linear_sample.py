"""Samples of rows straight from their hidden states, with at most a tile of logits in memory.

The tokens are those that the sampler draws from the head's logits: the words depend on (seed,
sample, position, token id) alone, whatever the route. Legend: T rows, H hidden, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from scoring_service.kernels import dispatch, reference
from scoring_service.kernels.linear_logprobs import (
    LinearHead,
    check_columns,
    check_linear,
    computing_on,
    row_parts,
    x_of,
)
from scoring_service.kernels.prefix import (
    RowTruncation,
    check_integers,
    kept,
    prefixes,
    row_temperatures,
)

_MAX_SEED = (1 << 64) - 1
_MAX_UINT32 = (1 << 32) - 1


@dataclass(frozen=True, slots=True)
class SampleRows:
    """Rows to sample from."""

    hidden_T_H: Tensor
    """Of the weight's type."""
    temperature_T: Tensor
    """float32, above 0."""
    truncation: RowTruncation
    seeds_T: Sequence[int]
    """uint64."""
    sample_indices_T: Sequence[int]
    """uint32, of the prompt."""
    positions_T: Sequence[int]
    """uint32: absolute, of the token to draw."""

    def take(self, rows: Tensor) -> SampleRows:
        """Some of them, by their numbers."""
        chosen = rows.tolist()
        return SampleRows(
            self.hidden_T_H[rows],
            self.temperature_T[rows],
            self.truncation.of_rows(rows),
            *([column[row] for row in chosen] for column in self.random),
        )

    @property
    def random(self) -> tuple[Sequence[int], Sequence[int], Sequence[int]]:
        """What the rows' words depend on beside the token's id."""
        return self.seeds_T, self.sample_indices_T, self.positions_T


def linear_sample(
    hidden_T_H: Tensor,
    head: LinearHead,
    seeds_T: Sequence[int],
    sample_indices_T: Sequence[int],
    positions_T: Sequence[int],
    *,
    temperature: float | Tensor = 1.0,
    top_k: int | Tensor | None = None,
    top_p: float | Tensor | None = None,
    min_p: float | Tensor | None = None,
    route: str | None = None,
) -> Tensor:
    """One token of each row, distributed exactly as its processed distribution. int64 [T].

    A row that is no distribution (NaN, or nothing that could be drawn) gets -1.

    Args:
        hidden_T_H: of the weight's type.
        head: what makes logits of them. Routes of Triton want the columns of its weight side by
            side.
        seeds_T: uint64.
        sample_indices_T: uint32, of the prompt.
        positions_T: uint32: absolute, of the token to draw.
        temperature: above 0; of all rows, or float32 [T].
        top_k: of all rows or integers [T]; None, 0, -1 and V or more = off.
        top_p: of all rows or [T]; None and 1 = off.
        min_p: of all rows or [T]; None and 0 = off.
        route: "fused", "tiled" or "eager"; None = what `dispatch` takes. The fused route keeps no
            logits of rows without filters, and sends the others through a tile.

    Raises:
        ValueError: there is no such route, tensors and numbers do not fit each other, a seed,
            sample or position is outside of its range, a top_k has fractions, the columns of the
            weight are not side by side on a route of Triton, or, where that can be seen without
            waiting for a GPU's kernels, a temperature is not above 0 and finite, a top_k is below
            -1 or a share outside of [0, 1].
    """
    check_linear(hidden_T_H, head)
    count, vocab, device = len(hidden_T_H), len(head.weight_V_H), hidden_T_H.device
    route = route or dispatch.linear_route(device, count)
    if route not in ("fused", "tiled", "eager"):
        raise ValueError(f"route {route!r} is none of fused, tiled, eager")
    if route != "eager":
        check_columns(head.weight_V_H)
    numbers = [len(column) for column in (seeds_T, sample_indices_T, positions_T)]
    if numbers != [count] * 3:
        raise ValueError(f"{numbers} seeds, samples and positions for {count} rows")
    # Words are made of their low bits: others would draw a neighbour's tokens.
    check_integers("seeds", seeds_T, least=0, most=_MAX_SEED)
    check_integers("sample indices", sample_indices_T, least=0, most=_MAX_UINT32)
    check_integers("positions", positions_T, least=0, most=_MAX_UINT32)
    rows = SampleRows(
        hidden_T_H,
        row_temperatures(temperature, count, device),
        RowTruncation.of(top_k, top_p, min_p, count, vocab, device),
        seeds_T,
        sample_indices_T,
        positions_T,
    )
    # By a row's own filters: what its neighbours have changes neither its route nor its bits.
    plain_T = torch.zeros(count, dtype=torch.bool, device=device)
    if route == "fused":
        plain_T = ~rows.truncation.filters()
    drawn_T = torch.empty(count, dtype=torch.int64, device=device)
    plain_R = torch.nonzero(plain_T)[:, 0]
    others_R = torch.nonzero(~plain_T)[:, 0]
    tile = _eager_tile if route == "eager" else _triton_tile
    with computing_on(device):
        if len(plain_R):
            drawn_T[plain_R] = _fused(rows.take(plain_R), head)
        for part in row_parts(len(others_R), vocab, device):
            part_R = others_R[part]
            drawn_T[part_R] = tile(rows.take(part_R), head)
    return drawn_T


def _fused(rows: SampleRows, head: LinearHead) -> Tensor:
    # Imported where a CUDA device is, and nowhere else.
    from scoring_service.kernels.gpu import linear_head, linear_race
    from scoring_service.kernels.gpu.tile import words_inputs

    shard = linear_head.HeadShard(head.weight_V_H, head.bias_V, head.multiplier, head.soft_cap)
    inputs = words_inputs(*rows.random, rows.hidden_T_H.device)
    found = linear_race.chunk_winners(shard, rows.hidden_T_H, rows.temperature_T, *inputs)
    return linear_race.winners(*found)


def _triton_tile(rows: SampleRows, head: LinearHead) -> Tensor:
    # Imported where a CUDA device is, and nowhere else.
    from scoring_service.kernels.gpu.tile import TritonTile

    tile = TritonTile(x_of(rows.hidden_T_H, head), rows.temperature_T, overwrite=True)
    truncation = rows.truncation
    found = tile.support(truncation.top_k_T, truncation.top_p_T, truncation.min_p_T)
    drawn_T = tile.draw_from(found, *rows.random)
    return drawn_T.masked_fill(~tile.logsumexp_T.isfinite(), -1)


def _eager_tile(rows: SampleRows, head: LinearHead) -> Tensor:
    x_T_V = x_of(rows.hidden_T_H, head).div_(rows.temperature_T[:, None])
    # Of a row that is no distribution no support could be found.
    whole_T = reference.logsumexp(x_T_V).isfinite()
    x_T_V[~whole_T] = 0.0
    keep_T_V = kept(x_T_V, prefixes(x_T_V, rows.truncation))
    drawn_T = reference.draw(x_T_V, keep_T_V, *(list(column) for column in rows.random))
    return drawn_T.masked_fill(~whole_T, -1)
