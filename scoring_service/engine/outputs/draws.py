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
from scoring_service.types import SamplingTask

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
    top_logprobs: int
    """Tokens to list beside it."""


MakeTile = Callable[[Tensor, Sequence[float]], Tile]
"""Of logits and the temperature of each row."""


def draw_rows(
    logits_T_V: Tensor, rows: Sequence[DrawRow], make_tile: MakeTile
) -> list[DrawnToken | Fault]:
    """Draws one token a row; see `begin_draw`."""
    return begin_draw(logits_T_V, rows, make_tile)()


def begin_draw(
    logits_T_V: Tensor, rows: Sequence[DrawRow], make_tile: MakeTile
) -> Callable[[], list[DrawnToken | Fault]]:
    """Draws one token a row, each as its own sample is drawn, all at once.

    The call of what it returns waits for them.

    Args:
        logits_T_V: float32, or what tiles take.
        rows: one for each, of any settings.
        make_tile: makes tiles.

    Returns:
        A function that returns each row's token and how likely it was, or why there is none.
    """
    processings = [row.task.processing for row in rows]
    tile = make_tile(logits_T_V, [1.0 if p.greedy else p.temperature for p in processings])
    ids_T, processed_T, drawable_T = tile.draw(
        processings,
        [row.task.seed for row in rows],
        [row.sample_index for row in rows],
        [row.position for row in rows],
        [row.banned for row in rows],
    )
    # Ids are exact in float64, as fp32 is.
    columns = (
        torch.isfinite(tile.logsumexp_T),
        drawable_T,
        tile.logprobs_at(ids_T[:, None])[:, 0],
        ids_T,
        processed_T,
    )
    values = {_NUMBERS: torch.stack([column.double() for column in columns])}
    listed = [row.top_logprobs for row in rows]
    if any(listed):
        top_ids_T_K = tile.top_k_ids(listed, tile.vocab_size)
        values |= {_TOP_IDS: top_ids_T_K.int(), _TOP_LOGPROBS: tile.logprobs_at(top_ids_T_K)}
    arrive = on_their_way(values)
    return lambda: _drawn_tokens(rows, arrive())


def _drawn_tokens(rows: Sequence[DrawRow], found: Mapping[str, Tensor]) -> list[DrawnToken | Fault]:
    """What is said of drawn tokens, or of rows that nothing can be drawn from."""
    finite, drawable, logprobs, ids, processed = found[_NUMBERS].tolist()
    top_ids: Sequence[npt.ArrayLike] = [()] * len(rows)
    top_values: Sequence[npt.ArrayLike] = [()] * len(rows)
    if _TOP_IDS in found:
        # A row's own memory each: samples that share a step are not sent at the same time.
        top_ids, top_values = (
            [list_K[: row.top_logprobs].copy() for list_K, row in zip(lists, rows, strict=True)]
            for lists in (found[_TOP_IDS].numpy(), found[_TOP_LOGPROBS].numpy())
        )
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
