"""Row-wise functions a chunk at a time, computed again in the backward pass. Needs torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint


def by_chunks(
    function: Callable[..., Tensor],
    rows: Tensor,
    others: Mapping[str, Tensor | None],
    chunk_rows: int | None,
) -> Tensor:
    """Return function(rows, **others), [T], holding what it makes for chunk_rows rows at a time.

    Args:
        function: Of rows [t, …] and keyword tensors [t, …], row by row.
        rows: [T, …].
        others: Further arguments, each [T, …] or None.
        chunk_rows: Rows at a time; None = all at once.

    Raises:
        ValueError: chunk_rows < 1.
    """
    if chunk_rows is not None and chunk_rows < 1:
        raise ValueError(f"chunk_rows must be at least 1, got {chunk_rows}")
    if chunk_rows is None or len(rows) <= chunk_rows:
        return function(rows, **others)
    # Cut by one split, whose gradient is one cat: that of a slice is all rows again for each chunk.
    cut = {n: None if value is None else value.split(chunk_rows) for n, value in others.items()}
    parts = []
    for index, chunk_of_rows in enumerate(rows.split(chunk_rows)):
        chunk = {n: None if values is None else values[index] for n, values in cut.items()}
        parts.append(checkpoint(partial(function, **chunk), chunk_of_rows, use_reentrant=False))
    return torch.cat(parts)
