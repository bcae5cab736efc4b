"""Steps that only go on with samples, recorded once and replayed.

Such a step launches a dozen small kernels a layer, each of which a GPU has done before its host
asks for the next. A recorded step is launched as a whole. It has a fixed number of rows, whose
tokens, positions and slots lie where they lay when it was recorded; rows beyond those of samples
attend to themselves alone and are kept nowhere.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import Tensor

from scoring_service.engine.attention.packing import Packing
from scoring_service.engine.attention.pages import PagePool
from scoring_service.engine.attention.segments import NO_SLOTS, DecodeToken
from scoring_service.engine.machine.cuda_graphs import Compute, CudaRecorder, Recorder
from scoring_service.engine.machine.page_budget import GRAPH_PARTS, GRAPH_SLOTS
from scoring_service.engine.model.causal_model import CausalModel
from scoring_service.kernels import key_parts
from scoring_service.kernels.transfer import copy_async

if TYPE_CHECKING:
    from scoring_service.kernels.gpu.attention_work import Room


class DecodeGraphs:
    """Recorded steps of a model, by their rows.

    A step is computed as it stands when its number of rows is first wanted, which also compiles
    what has to be, and recorded when it is wanted again. What was recorded reads weights where they
    lie: each version has its own, which are gone when it is.

    Args:
        model: whose attention is Triton's.
        pool: its pages.
        rows: of the steps that may be recorded, ascending.
        tell: is told why nothing is recorded any more.
        make_recorder: one for each set of weights.
    """

    def __init__(
        self,
        model: CausalModel,
        pool: PagePool,
        rows: Sequence[int],
        tell: Callable[[Exception], None],
        make_recorder: Callable[[], Recorder] = CudaRecorder,
    ) -> None:
        self._model = model
        self._pool = pool
        self._rows = rows
        self._tell = tell
        self._make_recorder = make_recorder
        # Imported where a CUDA device is, and nowhere else.
        from scoring_service.kernels.gpu.attention_work import Room

        slots = torch.empty(GRAPH_SLOTS, dtype=torch.int32, device=model.device)
        self._room = Room(slots, GRAPH_PARTS)
        self._recorded: WeakKeyDictionary[object, _Recorded] = WeakKeyDictionary()
        """By the weights, or by the model before they are named."""
        self._failed = False

    def run(self, tokens: Sequence[DecodeToken]) -> Tensor | None:
        """States of tokens, [T, H], good until the next step; their keys and values are kept.

        Returns:
            None where they are too many, or have too many slots or parts of them: they go another
            way.
        """
        rows = next((rows for rows in self._rows if rows >= len(tokens)), None)
        if self._failed or rows is None or not self._has_room(tokens):
            return None
        weights = self._model.weights or self._model
        recorded = self._recorded.get(weights)
        if recorded is None:
            recorded = self._recorded[weights] = _Recorded(self._make_recorder())
        step = recorded.steps.get(rows)
        if step is None:
            step = recorded.steps[rows] = _Step(self._model, self._pool, rows, self._room)
        step.take(tokens)
        try:
            return step.states(recorded.recorder)[: len(tokens)]
        except RuntimeError as error:
            if step.is_recorded:
                raise
            self._failed = True
            self._recorded.clear()
            self._tell(error)
            return None

    def _has_room(self, tokens: Sequence[DecodeToken]) -> bool:
        part = key_parts.KEY_PARTS.few
        lengths = [len(token.slots) for token in tokens]
        parts = sum(-(-length // part) for length in lengths if length > part)
        return sum(lengths) <= len(self._room.slots) and parts <= self._room.parts


@dataclass(frozen=True, slots=True)
class _Recorded:
    """Of one version of the weights."""

    recorder: Recorder
    steps: dict[int, _Step] = field(default_factory=dict)
    """By their rows."""


class _Step:
    """A step of so many rows."""

    def __init__(self, model: CausalModel, pool: PagePool, rows: int, room: Room) -> None:
        self._model = model
        self._inputs_3_R = torch.empty(3, rows, dtype=torch.int64, device=model.device)
        """Token ids, positions, and the slot that each is kept in."""
        self._packing = Packing(
            rows=rows,
            trees=(),
            decoding=(),
            kept_rows=torch.arange(rows, device=model.device),
            kept_slots=self._inputs_3_R[2],
            pool=pool,
            device=model.device,
            by_triton=True,
            work_room=room,
        )
        self._was_computed = False
        self._replay: Compute | None = None

    @property
    def is_recorded(self) -> bool:
        """Whether it is replayed from now on."""
        return self._replay is not None

    def take(self, tokens: Sequence[DecodeToken]) -> None:
        """Becomes the step of these tokens."""
        count, rows = len(tokens), self._packing.rows
        inputs_3_R = np.zeros((3, rows), dtype=np.int64)
        inputs_3_R[2] = -1
        inputs_3_R[0, :count] = [token.token_id for token in tokens]
        inputs_3_R[1, :count] = [len(token.slots) - 1 for token in tokens]
        inputs_3_R[2, :count] = [token.slots[-1] for token in tokens]
        before = [token.slots[:-1] for token in tokens] + [NO_SLOTS] * (rows - count)
        places = [(row, 1, len(slots), slots) for row, slots in enumerate(before)]
        self._packing.places = places
        with torch.inference_mode():
            copy_async(torch.from_numpy(inputs_3_R), self._inputs_3_R)
            for work in self._packing.work.values():
                work.refill(places)

    def states(self, record: Recorder) -> Tensor:
        """Final hidden states of all rows, [R, H].

        Raises:
            RuntimeError: it cannot be recorded, or not computed at all.
        """
        if self._replay is None:
            if not self._was_computed:
                states_R_H = self._compute()
                self._was_computed = True
                return states_R_H
            self._replay = record(self._compute)
        return self._replay()

    def _compute(self) -> Tensor:
        self._packing.layer = 0
        return self._model.packed_states(self._inputs_3_R[0], self._inputs_3_R[1], self._packing)
