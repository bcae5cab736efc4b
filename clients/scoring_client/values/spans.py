"""Which rows of a completion are wanted."""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

from scoring_client.errors import invalid
from scoring_client.values.tokens import SupportsArray, as_array

Span = tuple[int, int]
"""First row and number of rows."""

Rows = Sequence[Span] | Sequence[bool] | npt.NDArray[Any] | SupportsArray
"""Spans of rows, or a mask with an entry for each token of the completion."""


_MASK_OR_SPANS = (
    "a mask as bools (np.array(mask, dtype=bool)), rows as spans ([(start, length), …], of indices "
    "[(row, 1) for row in rows])"
)

_MAX_ROWS = np.iinfo(np.int32).max
"""What a message can number."""


def spans_of_mask(mask: npt.NDArray[np.bool_]) -> list[Span]:
    """Return the runs of True in a mask [T] as spans, in ascending order."""
    edges = np.flatnonzero(np.diff(np.concatenate(([False], mask, [False]))))
    return [(int(start), int(stop - start)) for start, stop in edges.reshape(-1, 2)]


def as_spans(rows: Rows, token_count: int | None, path: str) -> list[Span]:
    """Return spans for what a caller gave as rows: spans, or a mask of bools or of 0 and 1.

    Trainers keep their masks in any type, so 0.0 and 1.0 will do as well, and so will integers
    where they cannot be indices of rows.

    Args:
        rows: Spans (start, length), or a mask with an entry for each token.
        token_count: Tokens of the completion; None when it is text.
        path: Path of the field, for errors.

    Raises:
        InvalidRequestError: neither of the two, a mask of the wrong length, or what may be a mask
            as well as indices.
    """
    expected = "spans [(start, length), …] or a mask of bools"
    array = as_array(rows, expected, path)
    if array.size == 0:
        return []
    if _mask_or_indices(array):
        raise invalid(
            path,
            f"{array.tolist()} may be a mask or the indices of rows: give {_MASK_OR_SPANS}",
        )
    if array.ndim == 1 and (array.dtype == np.bool_ or _zeros_and_ones(array)):
        return spans_of_mask(_checked_mask(array.astype(np.bool_), token_count, path))
    if array.ndim != 2 or array.shape[1] != 2 or not np.issubdtype(array.dtype, np.integer):
        raise invalid(
            path,
            f"expected {expected}, got {array.dtype} {list(array.shape)}"
            + (f"; give {_MASK_OR_SPANS}" if array.ndim == 1 else ""),
        )
    spans = [(int(start), int(length)) for start, length in array]
    # The server checks them against the completion; what follows would confuse this side.
    for (start, length), (next_start, _) in pairwise(spans):
        if start + length > next_start:
            raise invalid(path, f"rows {start}+{length} and {next_start} overlap or are unordered")
    for start, length in spans:
        if start < 0 or length < 1 or start + length > _MAX_ROWS:
            raise invalid(path, f"({start}, {length}) is no span: start >= 0 and length >= 1")
    return spans


def _mask_or_indices(array: npt.NDArray[Any]) -> bool:
    """Return whether integers could be meant in both ways; indices ascend, as those of results."""
    return bool(np.issubdtype(array.dtype, np.integer)) and array.tolist() in ([0], [0, 1])


def _zeros_and_ones(array: npt.NDArray[Any]) -> bool:
    return bool(np.issubdtype(array.dtype, np.number) and np.isin(array, (0, 1)).all())


def _checked_mask(
    mask: npt.NDArray[np.bool_], token_count: int | None, path: str
) -> npt.NDArray[np.bool_]:
    if token_count is None:
        raise invalid(path, "a mask needs a completion given as token ids; use spans for text")
    if len(mask) != token_count:
        raise invalid(path, f"the mask has {len(mask)} entries for {token_count} tokens")
    return mask
