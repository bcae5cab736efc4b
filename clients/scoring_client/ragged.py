"""Candidates of different number in each row, end to end as sparse formats have them."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from scoring_client.values.arrays import Float32Array, Int32Array


class RaggedCandidates:
    """Ids of T rows end to end, as the padded [T, C] that a request takes, and answers back."""

    def __init__(self, ids: npt.ArrayLike, counts: npt.ArrayLike) -> None:
        """Lay them out.

        Args:
            ids: All rows' ids, one row's after the other's; -1 = not asked.
            counts: [T], how many of them are each row's (``numpy.diff`` of CSR's row pointers).

        Raises:
            ValueError: the counts do not add up to the ids, or an id is no int32, as a request has
                them.
        """
        flat, counts_T = np.asarray(ids, dtype=np.int64), np.asarray(counts, dtype=np.int64)
        if flat.ndim != 1 or counts_T.ndim != 1 or counts_T.sum() != len(flat):
            raise ValueError(f"{counts_T.sum()} candidates in all rows, but {flat.shape} ids")
        int32 = np.iinfo(np.int32)
        beyond = flat[(flat < int32.min) | (flat > int32.max)]
        if len(beyond):
            raise ValueError(f"an id is {beyond[0]}, which is no int32")  # it would be another's
        first = np.repeat(np.cumsum(counts_T) - counts_T, counts_T)
        self._rows = np.repeat(np.arange(len(counts_T)), counts_T)
        self._columns = np.arange(len(flat)) - first
        self.padded: Int32Array = np.full(
            (len(counts_T), max(counts_T.max(initial=0), 1)), -1, dtype=np.int32
        )
        """[T, C], C at least 1; -1 where a row has no more."""
        self.padded[self._rows, self._columns] = flat
        asked = self._rows[flat >= 0]
        self.first_row: int | None = int(asked[0]) if len(asked) else None
        """The first row in which an id is asked."""

    def flat(self, values: Float32Array, first_row: int = 0) -> Float32Array:
        """Return an answer's numbers in the order of the ids; NaN where nothing was asked.

        Args:
            values: [T - first_row, C], such as ``candidate_logprobs``.
            first_row: The row that they begin with.
        """
        whole = np.full(self.padded.shape, np.nan, dtype=np.float32)
        whole[first_row:] = values
        return whole[self._rows, self._columns]
