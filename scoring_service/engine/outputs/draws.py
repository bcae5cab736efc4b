"""Drawing the next tokens of samples from one tile of logits: of many, or of one."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy.typing as npt
import torch
from torch import Tensor

from scoring_service.engine.outputs.arrival import on_their_way
from scoring_service.engine.outputs.sample_slices import DrawnToken
from scoring_service.errors import Fault, Reason
from scoring_service.kernels.tile import Tile
from scoring_service.kernels.transfer import to_device_async
from scoring_service.types import Processing, SamplingTask

_NUMBERS, _TOP_IDS, _TOP_LOGPROBS = "numbers", "top ids", "top logprobs"


@dataclass(frozen=True, slots=True)
class DrawRow:
    """One token to draw."""

    task: SamplingTask
    sample_index: int
    position: int
    """Absolute, of the token to draw."""
    banned: tuple[int, ...]
    """Ids that may not be drawn."""


def draw_rows(
    logits_T_V: Tensor,
    rows: Sequence[DrawRow],
    processing: Processing,
    top_logprobs: int,
    make_tile: Callable[[Tensor, float], Tile],
) -> list[DrawnToken | Fault]:
    """Draws one token a row; see `begin_draw`."""
    return begin_draw(logits_T_V, rows, processing, top_logprobs, make_tile)()


def begin_draw(
    logits_T_V: Tensor,
    rows: Sequence[DrawRow],
    processing: Processing,
    top_logprobs: int,
    make_tile: Callable[[Tensor, float], Tile],
) -> Callable[[], list[DrawnToken | Fault]]:
    """Draws one token a row, each by its own seed. The call of what it returns waits for them.

    Args:
        logits_T_V: float32, or what tiles take.
        rows: one for each.
        processing: of all of them.
        top_logprobs: tokens to list beside each.
        make_tile: of logits and a temperature.

    Returns:
        A function that returns each row's token and how likely it was, or why there is none.
    """
    greedy = processing.temperature == 0.0
    tile = make_tile(logits_T_V, 1.0 if greedy else processing.temperature)
    allowed = tile
    if any(row.banned for row in rows):
        allowed = make_tile(without_banned(tile.x_T_V, rows), 1.0)
    if greedy:
        ids_T = allowed.greedy()
        processed_T = torch.zeros_like(tile.logsumexp_T)
    else:
        ids_T, processed_T = allowed.draw(
            processing.top_k,
            processing.top_p,
            processing.min_p,
            [row.task.seed for row in rows],
            [row.sample_index for row in rows],
            [row.position for row in rows],
        )
    # Ids are exact in float64, as fp32 is.
    columns = (
        torch.isfinite(tile.logsumexp_T),
        torch.isfinite(allowed.logsumexp_T),
        tile.logprobs_at(ids_T[:, None])[:, 0],
        ids_T,
        processed_T,
    )
    values = {_NUMBERS: torch.stack([column.double() for column in columns])}
    if top_logprobs:
        top_ids_T_K = tile.top_k_ids(top_logprobs, tile.vocab_size)
        values |= {_TOP_IDS: top_ids_T_K.int(), _TOP_LOGPROBS: tile.logprobs_at(top_ids_T_K)}
    arrive = on_their_way(values)
    return lambda: _drawn_tokens(rows, arrive())


def without_banned(x_T_V: Tensor, rows: Sequence[DrawRow]) -> Tensor:
    """A copy of x with each row's banned ids at -inf."""
    allowed_T_V = x_T_V.clone()
    banned = [(place, token) for place, row in enumerate(rows) for token in row.banned]
    places_N_2 = torch.tensor(banned, dtype=torch.int64).reshape(-1, 2)
    places_2_N = to_device_async(places_N_2, x_T_V.device).t()
    allowed_T_V[places_2_N[0], places_2_N[1]] = -torch.inf
    return allowed_T_V


def _drawn_tokens(rows: Sequence[DrawRow], found: Mapping[str, Tensor]) -> list[DrawnToken | Fault]:
    """What is said of drawn tokens, or of rows that nothing can be drawn from."""
    finite, drawable, logprobs, ids, processed = found[_NUMBERS].tolist()
    top_ids: Sequence[npt.ArrayLike] = [()] * len(rows)
    top_values: Sequence[npt.ArrayLike] = [()] * len(rows)
    if _TOP_IDS in found:
        # A row's own memory each: samples that share a step are not sent at the same time.
        top_ids = [row.copy() for row in found[_TOP_IDS].numpy()]
        top_values = [row.copy() for row in found[_TOP_LOGPROBS].numpy()]
    drawn: list[DrawnToken | Fault] = []
    for place, token in enumerate(ids):
        if not finite[place]:
            where = rows[place].position
            message = f"the logits at position {where} are not finite"
            drawn.append(Fault(Reason.NON_FINITE_LOGITS, message))
        elif not drawable[place]:
            message = "min_tokens and the stop ids leave no token to draw"
            drawn.append(Fault(Reason.INVALID_FIELD, message))
        else:
            drawn.append(
                DrawnToken(
                    int(token),
                    logprobs[place],
                    processed[place],
                    top_ids[place],
                    top_values[place],
                )
            )
    return drawn
