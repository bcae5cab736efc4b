"""Rows of as many settings as there are, and what tells their answers apart."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from torch import Tensor

from scoring_service.engine.outputs.draws import DrawRow, MakeTile, draw_rows
from scoring_service.engine.outputs.rows import compute_rows
from scoring_service.engine.outputs.sample_slices import DrawnToken
from scoring_service.types import Processing, RowWants, SamplingTask
from tests.kernels.cases import promoted

TRUNCATED = Processing(promoted(0.7), top_k=50, top_p=promoted(0.9))
GREEDY = Processing(0.0)

DRAWN = [
    GREEDY,
    Processing(promoted(0.7)),
    Processing(top_k=1),
    Processing(promoted(0.7), top_k=50),
    Processing(top_p=promoted(0.1)),
    Processing(min_p=promoted(0.05)),
    Processing(),
    TRUNCATED,
]
"""Eight settings of samples."""

SCORED = [
    Processing(promoted(1.3)),
    *(Processing(0.8, p.top_k, p.top_p, p.min_p, keep_realised=True) for p in DRAWN[2:6]),
    *DRAWN[5:],
]
"""Eight settings of rows that are scored."""

WANTS = RowWants.everything(top_k=5)


def draw_row(
    place: int, processing: Processing, banned: tuple[int, ...] = (), top_logprobs: int = 0
) -> DrawRow:
    """The sample of a place draws its next token."""
    task = SamplingTask(
        index=0,
        prompt_ids=np.zeros(1, dtype=np.int32),
        n=1,
        seed=2**63 + place,
        first_sample_index=0,
        processing=processing,
        processing_index=0,
        max_tokens=1,
    )
    return DrawRow(task, place, 100 + place, banned, top_logprobs)


def mixed_rows(processings: Sequence[Processing], rows: int = 16) -> list[DrawRow]:
    """Settings in turn; every third row has bans, and every other lists."""
    return [
        draw_row(n, processings[n % len(processings)], (5, 17) if n % 3 == 0 else (), n % 2 * 5)
        for n in range(rows)
    ]


def drawn_bits(logits_T_V: Tensor, rows: Sequence[DrawRow], make_tile: MakeTile) -> list[object]:
    """All that is said of each drawn token."""
    found = draw_rows(logits_T_V, rows, make_tile)
    assert all(isinstance(token, DrawnToken) for token in found)
    return [
        (t.token_id, t.logprob, t.processed_logprob, list(t.top_ids), list(t.top_logprobs))
        for t in found
        if isinstance(t, DrawnToken)
    ]


def scored_bits(
    logits_T_V: Tensor, first: int, processings: Sequence[Processing], make_tile: MakeTile
) -> list[dict[str, bytes]]:
    """Every number of each row; row 0 has no realised token, others one that is their place's."""
    places = np.arange(first, first + len(processings), dtype=np.int32)
    tile = make_tile(logits_T_V, [processing.temperature for processing in processings])
    block = compute_rows(tile, places * 7 - 1, processings, WANTS, places[:, None] * 3)
    arrays = {name: getattr(block, name) for name in block.__slots__ if name != "rows"}
    return [{name: x[n].tobytes() for name, x in arrays.items()} for n in range(block.rows)]
