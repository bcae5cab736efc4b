"""Row-wise functions a chunk at a time, computed again in the backward pass. Needs torch."""

from __future__ import annotations

import math
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
    kept: Tensor | None = None,
) -> Tensor:
    """Return function(rows, **others), [T], holding what it makes for chunk_rows rows at a time.

    Args:
        function: Of rows [t, V] and keyword tensors [t, …], row by row.
        rows: [..., V], T in all. Where flattening would copy them, such as ``logits[:, :-1]``, they
            are cut before it.
        others: Further arguments, each [T, …] or None.
        chunk_rows: Rows at a time; None = all at once.
        kept: bool [T]: the function is given these rows alone, and the others have 0. None = all.

    Raises:
        ValueError: chunk_rows < 1.
    """
    if chunk_rows is not None and chunk_rows < 1:
        raise ValueError(f"chunk_rows must be at least 1, got {chunk_rows}")
    count = math.prod(rows.shape[:-1])
    if chunk_rows is None or count <= chunk_rows:
        return _of_kept(function, rows, places=_places(kept), **others)
    pieces = _pieces(rows, chunk_rows)
    sizes = [math.prod(piece.shape[:-1]) for piece in pieces]
    # Cut by one split, whose gradient is one cat: that of a slice is all rows again for each chunk.
    cut = {n: None if value is None else value.split(sizes) for n, value in others.items()}
    kept_cut = None if kept is None else kept.split(sizes)
    parts = []
    for index, piece in enumerate(pieces):
        chunk = {n: None if values is None else values[index] for n, values in cut.items()}
        # Here, so that a device is waited for once and not again in the backward pass.
        places = None if kept_cut is None else _places(kept_cut[index])
        of_chunk = partial(_of_kept, function, places=places, **chunk)
        parts.append(checkpoint(of_chunk, piece, use_reentrant=False))
    return torch.cat(parts)


def _pieces(rows: Tensor, most: int) -> list[Tensor]:
    """Views of rows [..., V] in order, with at most so many rows each."""
    if rows.ndim < 3 or rows.is_contiguous():
        return list(rows.reshape(-1, rows.shape[-1]).split(most))
    inner = math.prod(rows.shape[1:-1])
    if inner <= most:
        return list(rows.split(most // inner))
    return [piece for part in rows.unbind() for piece in _pieces(part, most)]


def _places(kept: Tensor | None) -> Tensor | None:
    """Indices of the rows that are kept; None when all are."""
    if kept is None:
        return None
    places = kept.nonzero()[:, 0]
    return None if len(places) == len(kept) else places


def _of_kept(
    function: Callable[..., Tensor],
    rows: Tensor,
    /,
    *,
    places: Tensor | None,
    **others: Tensor | None,
) -> Tensor:
    """The function of the rows at some places, 0 elsewhere."""
    rows = rows.reshape(-1, rows.shape[-1])
    if places is None:
        return function(rows, **others)
    # Left out, not multiplied by 0: they may hold what has no finite value, or are no ids at all.
    given = {name: None if value is None else value[places] for name, value in others.items()}
    values = function(rows[places], **given)
    return values.new_zeros(len(rows)).index_put((places,), values)
