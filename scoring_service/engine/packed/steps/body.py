"""The model's forward over one packed step."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from scoring_service.engine.attention.packing import Packing, SegmentTree, TreeNode, depth_first
from scoring_service.engine.attention.pages import PagePool
from scoring_service.engine.attention.segments import DecodeToken, Segment, SegmentRange, SlotArray
from scoring_service.engine.model.causal_model import CausalModel
from scoring_service.engine.packed.steps.decode_graphs import DecodeGraphs
from scoring_service.kernels.transfer import to_device_async


@dataclass(frozen=True, slots=True)
class Step:
    """What one forward pass computes."""

    pieces: tuple[SegmentRange, ...]
    """Ancestors before descendants, or computed by earlier steps. Nothing continues a segment that
    is not computed to its end."""
    decode_tokens: tuple[DecodeToken, ...] = ()

    @classmethod
    def of(cls, segments: Iterable[Segment], decode_tokens: tuple[DecodeToken, ...] = ()) -> Step:
        """All that is left of segments."""
        return cls(
            tuple(SegmentRange(s, s.done, len(s.token_ids)) for s in segments), decode_tokens
        )


@dataclass(frozen=True, slots=True)
class StepStates:
    """Final hidden states of a step."""

    states_T_H: Tensor
    starts: dict[int, int]
    """id(segment) -> the first row of its piece."""
    decode_rows: range
    """Rows of the step's decode tokens."""


class PackedBody:
    """Runs steps through a model whose attention is `packed_attention`.

    Args:
        model: that has the body.
        pool: where keys and values are kept; None = nowhere.
        graphs: what replays steps that only go on with samples.
    """

    def __init__(
        self, model: CausalModel, pool: PagePool | None, graphs: DecodeGraphs | None = None
    ) -> None:
        self._model = model
        self._pool = pool
        self._graphs = graphs

    def run(self, step: Step) -> StepStates:
        """Computes a step; what is kept of it is in the pages afterwards."""
        if self._graphs is not None and not step.pieces:
            replayed_T_H = self._graphs.run(step.decode_tokens)
            if replayed_T_H is not None:
                return StepStates(replayed_T_H, {}, range(len(step.decode_tokens)))
        states, starts, _ = self.run_packed(step)
        first = len(states) - len(step.decode_tokens)
        return StepStates(states, starts, range(first, first + len(step.decode_tokens)))

    def run_packed(self, step: Step) -> tuple[Tensor, dict[int, int], Packing]:
        """As `run`, with the packing as the layers left it."""
        trees = depth_first(step.pieces)
        pieces = [piece for tree in trees for piece in tree]
        starts: dict[int, int] = {}
        rows = 0
        for piece in pieces:
            starts[id(piece.segment)] = rows
            rows += piece.tokens
        packing = self._packing(trees, starts, step.decode_tokens)
        token_ids = [piece.segment.token_ids[piece.first : piece.stop] for piece in pieces]
        positions = [np.arange(piece.start, piece.start + piece.tokens) for piece in pieces]
        token_ids += [np.array([token.token_id]) for token in step.decode_tokens]
        positions += [np.array([len(token.slots) - 1]) for token in step.decode_tokens]
        rows += len(step.decode_tokens)
        padding = np.zeros(packing.rows - rows, dtype=np.int64)
        device = self._model.device
        states = self._model.packed_states(
            _int64([*token_ids, padding], device), _int64([*positions, padding], device), packing
        )
        return states[:rows], starts, packing

    def packing(self, step: Step) -> Packing:
        """The packing of a step whose segments form one chain, in its order."""
        starts = {id(piece.segment): piece.start for piece in step.pieces}
        return self._packing(depth_first(step.pieces), starts, step.decode_tokens)

    def _packing(
        self,
        trees: Sequence[Sequence[SegmentRange]],
        starts: dict[int, int],
        decode_tokens: Sequence[DecodeToken],
    ) -> Packing:
        device = self._model.device
        kept_rows: list[np.ndarray] = []
        kept_slots: list[np.ndarray] = []
        segment_trees = []
        places: list[tuple[int, int, int, SlotArray]] = []
        by_triton = self._model.attends_by_triton
        row = 0
        for tree in trees:
            nodes = []
            for piece in tree:
                segment = piece.segment
                first = starts[id(segment)]
                row = first + piece.tokens
                nodes.append(TreeNode(first, row, piece.start))
                if len(segment.slots):
                    kept_rows.append(np.arange(first, row))
                    kept_slots.append(segment.slots[piece.first : piece.stop])
            if by_triton:
                places += _places(tree, nodes)
            else:
                prefix = tree[0].segment.slots_before()
                prefix_slots = to_device_async(torch.from_numpy(prefix), device)
                segment_trees.append(SegmentTree(prefix_slots, tuple(nodes)))
        decoding = [(place, token.slots) for place, token in enumerate(decode_tokens, row)]
        for place, slots in decoding:
            kept_rows.append(np.array([place]))
            kept_slots.append(slots[-1:])
            if by_triton:
                places.append((place, 1, len(slots) - 1, slots[:-1]))
        row += len(decode_tokens)
        return Packing(
            rows=row + -row % self._model.row_multiple,
            trees=tuple(segment_trees),
            decoding=tuple(decoding),
            kept_rows=_int64(kept_rows, device),
            kept_slots=_int64(kept_slots, device),
            pool=self._pool,
            device=device,
            kernels=self._model.kernels,
            by_triton=by_triton,
            places=places,
        )


def _places(
    tree: Sequence[SegmentRange], nodes: Sequence[TreeNode]
) -> Iterator[tuple[int, int, int, SlotArray]]:
    """Pieces of a tree with the slots before them: siblings share an array."""
    before: dict[tuple[int, int], SlotArray] = {}
    for piece, node in zip(tree, nodes, strict=True):
        segment = piece.segment
        shared = id(segment if segment.done else segment.parent), segment.done
        if shared not in before:
            before[shared] = segment.slots_before()
        yield node.start, node.tokens, node.first, before[shared]


def _int64(parts: Sequence[np.ndarray], device: torch.device) -> Tensor:
    if not parts:
        return torch.empty(0, dtype=torch.int64, device=device)
    return to_device_async(torch.from_numpy(np.concatenate(parts).astype(np.int64)), device)
