"""A packed step as work items of `attention.packed_attention`: what a program looks at.

Host code: tables are made by numpy, 256 samples after 32,000 tokens being 16,000 items.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from scoring_service.kernels import key_parts
from scoring_service.kernels.key_parts import KeyParts
from scoring_service.kernels.transfer import copy_async, to_device_async

FEW_QUERIES = 16
"""Queries of a block of sampled tokens: what a matrix unit takes at least."""

MANY_QUERIES = 64
"""Queries of a block of a segment."""

WORK_FIELDS = 8
"""Numbers of a work item: first row of the segment, its tokens, position of the first, where the
slots of earlier positions begin, the first query of the block; then the part of the earlier
positions that it looks at: its beginning, how long parts are (as long as all of them where they are
not cut), and which row of partial results is its first query's, -1 where they are not cut. The last
part of a block looks at the segment itself as well."""

PROGRAMS = 1024
"""Of a recorded step, at least: a large GPU has room for three on each of 132 processors. Parts are
then shared out as evenly as they come."""

SlotArray = npt.NDArray[np.int64]

SegmentPlace = tuple[int, int, int, SlotArray]
"""First row, tokens, position of the first, and slots of every position before it."""


@dataclass(frozen=True, slots=True)
class Heads:
    """What of a layer decides how a step is cut into work items."""

    group: int
    """Heads that share keys."""
    kv_heads: int
    value_width: int
    dtype: torch.dtype
    """Of queries. Of fp32 ones all blocks are small: larger ones take half a minute to compile, and
    what is fp32 are probes."""

    @property
    def partial_rows(self) -> int:
        """Rows of partial results of a launch, at most: a row is a query of every head of keys."""
        size = key_parts.partial_bytes(self.kv_heads, self.kv_heads * self.value_width)
        return key_parts.PARTIAL_BYTES // size


@dataclass(frozen=True, slots=True)
class Partials:
    """Where parts leave their results, one launch after the other."""

    sums: Tensor
    """float32: weighted values of rows."""
    marks: Tensor
    """float32: of each row its largest score, in units of log 2, and the sum of its weights."""


@dataclass(slots=True)
class Room:
    """Where a step lies that becomes others."""

    slots: Tensor
    """int32: of earlier positions."""
    parts: int
    """Of single tokens' chains, at most."""
    partials: dict[Heads, Partials] = field(default_factory=dict)
    """Those that steps share, of which one is computed at a time."""


Kind = tuple[int, int, int]
"""Queries of a block, those that one has at most, and how many blocks."""


@dataclass(frozen=True, slots=True)
class Items:
    """Blocks of one size, launched together."""

    kind: Kind
    numbers: Tensor
    """int64 [1 + at least N, 8]: N itself, then items, first those that look at segments, of which
    every block has one."""
    programs: int
    """Of each head."""
    is_cut: bool
    """Whether chains are cut, or may be in a step that this one becomes."""


@dataclass(frozen=True, slots=True)
class Work:
    """A step's segments and sampled tokens as work items, on the device."""

    heads: Heads
    items: tuple[Items, ...]
    slots: Tensor
    """int32: where the keys of earlier positions are kept, one segment's after another's."""
    partials: Partials
    least_part: int
    """Keys: layers with no wider a window are not cut."""
    room: Room | None

    def refill(self, segments: Sequence[SegmentPlace]) -> None:
        """Becomes another step, of as many segments of as many tokens, where it lies.

        Args:
            segments: see `work_of`.

        Raises:
            ValueError: it has no room, or the step has other blocks, or more slots or parts than
                there is room for.
        """
        if self.room is None:
            raise ValueError("a step without room becomes no other")
        listed = _listed_in(self.room, segments, self.heads)
        if [blocks.kind for blocks in listed] != [items.kind for items in self.items]:
            raise ValueError("another step in the same place has to have the same blocks")
        _copy_into(_slots(segments), self.slots, "slots")
        for blocks, items in zip(listed, self.items, strict=True):
            _copy_into(blocks.numbers, items.numbers, "work items")


def work_of(
    segments: Sequence[SegmentPlace],
    heads: Heads,
    device: torch.device,
    room: Room | None = None,
    parts: KeyParts | None = None,
) -> Work:
    """A step as work items.

    Args:
        segments: of the step; a sampled token is one of its own. Those that continue the same one
            share their array of slots.
        heads: of the layers that it is for.
        device: that has the step.
        room: where it is to lie, if it becomes other steps: single tokens alone then.
        parts: where chains are cut, unless where they always are.

    Raises:
        ValueError: there is not enough room.
    """
    if room is not None:
        return _work_in(room, segments, heads, device)
    parts = parts or key_parts.KEY_PARTS
    listed = _listed(segments, heads, parts, heads.partial_rows)
    items = (
        Items(
            blocks.kind,
            to_device_async(blocks.numbers, device),
            programs=len(blocks.numbers) - 1,
            is_cut=blocks.partial_rows > 0,
        )
        for blocks in listed
    )
    rows = max((blocks.partial_rows for blocks in listed), default=0)
    slots = to_device_async(_slots(segments), device)
    partials = _partials(heads, rows, device)
    return Work(heads, tuple(items), slots, partials, parts.few, room=None)


def _work_in(
    room: Room, segments: Sequence[SegmentPlace], heads: Heads, device: torch.device
) -> Work:
    items = []
    for blocks in _listed_in(room, segments, heads):
        block, _, count = blocks.kind
        longest = 1 + count + room.parts * -(-heads.group // block)
        numbers = torch.empty((longest, WORK_FIELDS), dtype=torch.int64, device=device)
        _copy_into(blocks.numbers, numbers, "work items")
        programs = max(count, -(-PROGRAMS // heads.kv_heads))
        items.append(Items(blocks.kind, numbers, programs, is_cut=True))
    _copy_into(_slots(segments), room.slots, "slots")
    if heads not in room.partials:
        room.partials[heads] = _partials(heads, room.parts * heads.group, device)
    partials, least_part = room.partials[heads], key_parts.KEY_PARTS.few
    return Work(heads, tuple(items), room.slots, partials, least_part, room)


def _partials(heads: Heads, rows: int, device: torch.device) -> Partials:
    rows = max(1, rows) * heads.kv_heads  # a pointer that is not used has a type nevertheless
    return Partials(
        torch.empty((rows, heads.value_width), device=device),
        torch.empty((rows, 2), device=device),
    )


def _copy_into(host: Tensor, room: Tensor, what: str) -> None:
    if len(host) > len(room):
        raise ValueError(f"{len(host)} {what} in room for {len(room)}")
    copy_async(host, room[: len(host)])


def _slots(segments: Sequence[SegmentPlace]) -> Tensor:
    """Slots of all segments, after one that is nobody's."""
    # Every step lists the slots of all samples: joined and narrowed in one pass.
    arrays = [np.zeros(1, dtype=np.int64), *_arrays(segments)]
    return torch.from_numpy(np.concatenate(arrays, dtype=np.int32, casting="same_kind"))


def _arrays(segments: Sequence[SegmentPlace]) -> list[SlotArray]:
    """Those of all segments, once each."""
    return list({id(slots): slots for *_, slots in segments}.values())


@dataclass(frozen=True, slots=True)
class _Blocks:
    """What `Items` has, on the host."""

    kind: Kind
    numbers: Tensor
    partial_rows: int
    """Of its parts."""


def _listed_in(room: Room, segments: Sequence[SegmentPlace], heads: Heads) -> list[_Blocks]:
    """Steps that become others are one launch of each size."""
    rows = room.parts * heads.group
    listed = _listed(segments, heads, key_parts.KEY_PARTS, rows)
    sizes = {blocks.kind[0] for blocks in listed}
    if len(listed) > len(sizes) or any(blocks.partial_rows > rows for blocks in listed):
        raise ValueError(f"more parts of keys than the {room.parts} that there is room for")
    return listed


def _listed(
    segments: Sequence[SegmentPlace], heads: Heads, parts: KeyParts, rows: int
) -> list[_Blocks]:
    """Blocks of a step, together as long as their parts leave no more than so many rows.

    In a table of blocks there are two columns more than `WORK_FIELDS`: how many parts a block has,
    and how many queries.
    """
    most = FEW_QUERIES if heads.dtype == torch.float32 else MANY_QUERIES
    tables: dict[int, list[tuple[int, ...]]] = {MANY_QUERIES: [], FEW_QUERIES: []}
    offsets: dict[int, int] = {}
    end = 1
    for slots in _arrays(segments):
        offsets[id(slots)] = end
        end += len(slots)
    for start, tokens, first, slots in segments:
        queries = tokens * heads.group
        block = FEW_QUERIES if queries <= FEW_QUERIES else most
        part = _part_of(tokens, first, block, heads, parts)
        count = max(1, -(-first // part)) if part else 1
        segment = (start, tokens, first, offsets[id(slots)])
        tables[block] += [
            (*segment, q, 0, part or first, -1, count, min(block, queries - q))
            for q in range(0, queries, block)
        ]
    return [
        _blocks(block, launched)
        for block, table in tables.items()
        for launched in _launches(np.array(table, dtype=np.int64).reshape(-1, 10), rows)
    ]


def _part_of(tokens: int, first: int, block: int, heads: Heads, parts: KeyParts) -> int:
    """Keys of a part of a segment's chain; 0 where it is not cut."""
    queries = tokens * heads.group
    part = parts.few if tokens == 1 or block == FEW_QUERIES else parts.many
    fills_more = tokens > 1 and -(-queries // block) * heads.kv_heads > parts.programs
    leaves_more = -(-first // part) * min(block, queries) > heads.partial_rows
    return 0 if first <= part or fills_more or leaves_more else part


def _launches(table_N_10: npt.NDArray[np.int64], rows: int) -> Iterator[npt.NDArray[np.int64]]:
    """Blocks one after another, as long as partial results have room."""
    left = np.where(table_N_10[:, 8] > 1, table_N_10[:, 8] * table_N_10[:, 9], 0)
    begin, held = 0, 0
    if left.sum() > rows:
        for block, more in enumerate(left.tolist()):
            if held and held + more > rows:
                yield table_N_10[begin:block]
                begin, held = block, 0
            held += more
    if begin < len(table_N_10):
        yield table_N_10[begin:]


def _blocks(block: int, table_N_10: npt.NDArray[np.int64]) -> _Blocks:
    """Work items of a launch: each block's last part, then the parts before."""
    part, count, queries = table_N_10[:, [6, 8, 9]].T
    left = np.where(count > 1, count * queries, 0)
    place = left.cumsum() - left
    last = table_N_10[:, :WORK_FIELDS].copy()
    last[:, 5] = (count - 1) * part
    last[:, 7] = np.where(count > 1, place + (count - 1) * queries, -1)
    of = np.repeat(np.arange(len(last)), count - 1)
    number = np.arange(len(of)) - np.repeat((count - 1).cumsum() - (count - 1), count - 1)
    others = last[of]
    others[:, 5] = number * part[of]
    others[:, 7] = place[of] + number * queries[of]
    total = np.full((1, WORK_FIELDS), len(last) + len(others))
    return _Blocks(
        (block, int(queries.max()), len(last)),
        torch.from_numpy(np.concatenate([total, last, others])),
        int(left.sum()),
    )
