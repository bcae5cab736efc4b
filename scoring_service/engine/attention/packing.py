"""What attention has to know of a packed step: who continues whom, and where that is kept."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from scoring_service.engine.attention.pages import LayerShape, PagePool
from scoring_service.engine.attention.segments import SegmentRange, SlotArray
from scoring_service.engine.attention.step_shape import gathered_tokens
from scoring_service.kernels.cpu.ops import CpuKernels
from scoring_service.kernels.transfer import to_device_async

if TYPE_CHECKING:
    from scoring_service.kernels.gpu.attention_work import Heads, Room, Work
    from scoring_service.kernels.key_parts import KeyParts

BUCKET_TOKENS = 64
"""Decoding attends to keys padded to a multiple of this, by a sample's own length alone."""


@dataclass(frozen=True, slots=True)
class TreeNode:
    """A segment's place in the step."""

    start: int
    """Its first row in the step."""
    stop: int
    first: int
    """Absolute position of its first token."""

    @property
    def tokens(self) -> int:
        """Rows of the segment."""
        return self.stop - self.start

    @property
    def end(self) -> int:
        """Absolute position after its last token."""
        return self.first + self.tokens


@dataclass(frozen=True, slots=True)
class SegmentTree:
    """Segments of one tree, depth first, and what an earlier step computed of their trunk.

    One workspace serves a tree, indexed by absolute position: a node overwrites what its
    predecessors' branches left after its own beginning, and finds its ancestors intact before it.
    """

    prefix_slots: Tensor
    """int64 [P]: where keys and values of positions 0 … P - 1 are kept."""
    nodes: tuple[TreeNode, ...]

    @property
    def length(self) -> int:
        """Positions the workspace has to hold."""
        return max(node.end for node in self.nodes)


@dataclass(frozen=True, slots=True)
class Bucket:
    """Samples whose keys are padded to one length."""

    rows: Tensor
    """int64 [B]: their rows in the step."""
    slots: Tensor
    """int64 [B, L]: where their keys are kept; beyond a sample's own, its last one again."""
    mask: Tensor
    """float32 [B, 1, L], 0 where there is a key, -inf beyond."""


@dataclass(slots=True)
class Packing:
    """One step. Layers take turns: each attention call belongs to the next layer."""

    rows: int
    """Rows of the step, padding included."""
    trees: tuple[SegmentTree, ...]
    decoding: tuple[tuple[int, SlotArray], ...]
    """(row, slots of every position up to its own) of each sampled token."""
    kept_rows: Tensor
    """int64: rows whose keys and values are kept."""
    kept_slots: Tensor
    """int64: slots that they are kept in, of `kept_rows` in order."""
    pool: PagePool | None
    """None while the probe finds out the shapes of layers."""
    device: torch.device
    kernels: CpuKernels | None = None
    """None: torch's operators do it."""
    layer: int = 0
    shapes: list[LayerShape] = field(default_factory=list)
    """Filled while `pool` is None."""
    masks: dict[tuple[int, int, int | None], Tensor] = field(default_factory=dict)
    buckets: dict[int | None, tuple[Bucket, ...]] = field(default_factory=dict)
    tables: tuple[Tensor, Tensor] | None = None
    """The step as `runs.tables` puts it, once a kernel asked for it."""
    by_triton: bool = False
    """Whether the Triton kernel does it, from `places` alone: there are no trees then."""
    places: Sequence[tuple[int, int, int, SlotArray]] = ()
    """Of each segment and sampled token: its first row, how many, the position of the first, and
    the slots of every position before it."""
    work: dict[Heads, Work] = field(default_factory=dict)
    """`places` as the Triton kernel takes them, by what layers have of heads."""
    work_room: Room | None = None
    """Where `work` is to lie; None = in new memory."""
    key_parts: KeyParts | None = None
    """Where the Triton kernel cuts chains of earlier keys; None = where it always does."""

    def kept(self, layer: int) -> tuple[Tensor, Tensor]:
        """Keys and values that a layer kept of earlier tokens.

        Raises:
            RuntimeError: nothing is kept in this step.
        """
        if self.pool is None:
            raise RuntimeError("a step without pages cannot continue another")
        return self.pool.keys[layer], self.pool.values[layer]

    def mask(self, tokens: int, before: int, window: int | None) -> Tensor:
        """float32 [tokens, before + tokens], -inf where a query must not look."""
        found = self.masks.get((tokens, before, window))
        if found is None:
            query = torch.arange(before, before + tokens, device=self.device)[:, None]
            key = torch.arange(before + tokens, device=self.device)[None, :]
            hidden = key > query
            if window is not None:
                hidden |= key <= query - window
            found = torch.zeros(tokens, before + tokens, device=self.device)
            found = found.masked_fill_(hidden, -torch.inf)
            self.masks[tokens, before, window] = found
        return found

    def decode_buckets(self, window: int | None) -> tuple[Bucket, ...]:
        """The sampled tokens by padded length."""
        found = self.buckets.get(window)
        if found is None:
            found = tuple(_buckets(self.decoding, window, self.device))
            self.buckets[window] = found
        return found


def _buckets(
    decoding: Sequence[tuple[int, SlotArray]],
    window: int | None,
    device: torch.device,
) -> list[Bucket]:
    by_length: dict[int, list[tuple[int, SlotArray]]] = {}
    for row, slots in decoding:
        seen = slots if window is None else slots[-window:]
        padded = -(-len(seen) // BUCKET_TOKENS) * BUCKET_TOKENS
        by_length.setdefault(padded, []).append((row, seen))
    buckets = []
    for length, members in _cut(by_length, gathered_tokens(device.type)):
        table = np.empty((len(members), length), dtype=np.int64)
        mask = np.zeros((len(members), 1, length), dtype=np.float32)
        for place, (_, seen) in enumerate(members):
            table[place, : len(seen)] = seen
            table[place, len(seen) :] = seen[-1]
            mask[place, 0, len(seen) :] = -np.inf
        buckets.append(
            Bucket(
                to_device_async(torch.tensor([row for row, _ in members]), device),
                to_device_async(torch.from_numpy(table), device),
                to_device_async(torch.from_numpy(mask), device),
            )
        )
    return buckets


def _cut(
    by_length: dict[int, list[tuple[int, SlotArray]]], tokens: int
) -> Iterator[tuple[int, list[tuple[int, SlotArray]]]]:
    """Samples of one padded length, as many together as have so many tokens."""
    for length, members in sorted(by_length.items()):
        count = max(1, tokens // length)
        for first in range(0, len(members), count):
            yield length, members[first : first + count]


def depth_first(pieces: Sequence[SegmentRange]) -> list[list[SegmentRange]]:
    """Orders what a step computes of segments into trees, each depth first.

    Returns:
        One list a tree: its root continues something that an earlier step computed, or nothing.
        Roots that continue the same segment share a list.
    """
    chosen = {id(piece.segment) for piece in pieces}
    children: dict[int | None, list[SegmentRange]] = {}
    roots: dict[int | None, list[SegmentRange]] = {}
    for piece in pieces:
        segment = piece.segment
        parent = None if segment.parent is None else id(segment.parent)
        if parent in chosen:
            children.setdefault(parent, []).append(piece)
        else:
            # Without a parent, or beginning in itself, it has nothing in common with others.
            alone = segment.parent is None or piece.first > 0
            roots.setdefault(id(segment) if alone else parent, []).append(piece)
    trees = []
    for siblings in roots.values():
        ordered: list[SegmentRange] = []
        stack = siblings[::-1]
        while stack:
            piece = stack.pop()
            ordered.append(piece)
            stack.extend(children.get(id(piece.segment), [])[::-1])
        trees.append(ordered)
    return trees
