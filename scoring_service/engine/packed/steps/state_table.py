"""Where the final hidden states are that a step's rows come from."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from scoring_service.engine.attention.segments import Segment, SegmentRange


class StateTable:
    """Rows of the step, and behind them ends of segments that earlier steps computed."""

    def __init__(self, width: int, starts: dict[int, int], pieces: Sequence[SegmentRange]) -> None:
        """Begins with what the step computed.

        Args:
            width: rows of the step.
            starts: id(segment) -> the first row of its piece.
            pieces: of the step.
        """
        self._width = width
        self._pieces = {id(piece.segment): (starts[id(piece.segment)], piece) for piece in pieces}
        self._kept: list[Tensor] = []
        self._places: dict[int, int] = {}

    def piece_of(self, segment: Segment) -> tuple[int, SegmentRange]:
        """What the step computed of a segment, and its first row."""
        return self._pieces[id(segment)]

    def end_of(self, segment: Segment) -> int:
        """Of the last token of a segment of this or an earlier step.

        Raises:
            RuntimeError: the segment is not computed.
        """
        if id(segment) in self._pieces:
            row, piece = self._pieces[id(segment)]
            return row + piece.tokens - 1
        if id(segment) not in self._places:
            if segment.end_state is None:
                raise RuntimeError("a row was asked of a segment that is not computed")
            self._places[id(segment)] = self._width + len(self._kept)
            self._kept.append(segment.end_state)
        return self._places[id(segment)]

    def join(self, states: Tensor | None) -> Tensor:
        """The whole table, [S, H].

        Args:
            states: of the step's rows, [T, H]; None where it has none.
        """
        parts = [] if states is None else [states]
        if self._kept:
            parts.append(torch.stack(self._kept))
        return parts[0] if len(parts) == 1 else torch.cat(parts)
