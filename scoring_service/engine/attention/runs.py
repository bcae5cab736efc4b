"""A step as tables of numbers, for kernels: nodes, and where the keys of their chains are."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from scoring_service.engine.attention.packing import SegmentTree, TreeNode
from scoring_service.engine.attention.segments import SlotArray

_Run = tuple[int, int, int, int]
"""1 for slots of the pool and 0 for rows of the step; the first of them; the position of that one;
how many."""


def tables(
    trees: Sequence[SegmentTree], decoding: Sequence[tuple[int, SlotArray]]
) -> tuple[Tensor, Tensor]:
    """Nodes and runs of a step.

    Args:
        trees: its segments.
        decoding: (row, slots of every position up to its own) of each sampled token.

    Returns:
        int64 [N, 5], a node each, or several whose rows are one run: first row, tokens, position of
        the first, and which runs are its chain and itself, in the order of positions: [begin, end).
        And int64 [R, 4], a run each.
    """
    nodes: list[tuple[int, int, int, int, int]] = []
    runs: list[_Run] = []
    for tree in trees:
        prefix = _runs_of(tree.prefix_slots.numpy())
        ancestors: list[_Run] = []
        for node in tree.nodes:
            goes_on = _goes_on(ancestors, node)
            _climb(ancestors, node)
            if goes_on:
                runs.append(ancestors[-1])
                start, tokens, first, begin, _ = nodes[-1]
                nodes[-1] = (start, tokens + node.tokens, first, begin, len(runs))
                continue
            begin = len(runs)
            runs += [*prefix, *ancestors]
            nodes.append((node.start, node.tokens, node.first, begin, len(runs)))
    for row, slots in decoding:
        begin = len(runs)
        runs += _runs_of(slots)
        nodes.append((row, 1, len(slots) - 1, begin, len(runs)))
    return _table(nodes, 5), _table(runs, 4)


def _goes_on(ancestors: Sequence[_Run], node: TreeNode) -> bool:
    """Whether a node and the one before it are as good as one.

    They are computed faster so, with the same bits. Single tokens are computed in another way.
    """
    if not ancestors or node.tokens == 1:
        return False
    _, start, first, tokens = ancestors[-1]
    return tokens > 1 and (start + tokens, first + tokens) == (node.start, node.first)


def _climb(ancestors: list[_Run], node: TreeNode) -> None:
    """Leaves branches that do not lead to the node, and adds it."""
    while ancestors and ancestors[-1][2] >= node.first:
        ancestors.pop()
    ancestors.append((0, node.start, node.first, node.tokens))


def _runs_of(slots: SlotArray) -> list[_Run]:
    if not len(slots):
        return []
    cuts = np.flatnonzero(np.diff(slots) != 1) + 1
    begins = [0, *cuts.tolist()]
    ends = [*cuts.tolist(), len(slots)]
    return [(1, int(slots[a]), a, b - a) for a, b in zip(begins, ends, strict=True)]


def _table(rows: Sequence[Sequence[int]], columns: int) -> Tensor:
    return torch.tensor(rows, dtype=torch.int64).reshape(-1, columns)
