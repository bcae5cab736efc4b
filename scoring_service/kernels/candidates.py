"""The most likely tokens of each row, found through maxima of groups of columns.

The k-th largest group maximum is a lower bound of the k-th largest value, so everything above it
lies in the groups that reach it. Those are read again, and a few thousand columns are sorted
instead of the vocabulary. Ties go to the lower id, exactly.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

MARGIN = 16
"""Groups read beyond k, so that ties at the bound seldom need a second look."""

_MIN_GROUP = 4
"""With smaller groups, sorting all columns is as fast."""


def top_ids(x_T_V: Tensor, k: int) -> Tensor:
    """Ids of the k largest x of each row, largest first, equal x to the lower id. int64 [T, K]."""
    rows, vocab = x_T_V.shape
    size = _group_size(vocab, k)
    if size == 0:
        return _ordered(x_T_V, torch.arange(vocab, device=x_T_V.device).expand(rows, vocab), k)
    groups = vocab // size
    # Group g holds the columns g, g + groups, g + 2 * groups ...: maxima of contiguous rows.
    body = x_T_V[:, : groups * size].view(rows, size, groups)
    chosen = torch.topk(body.amax(dim=1), k + MARGIN, dim=1, sorted=False)
    bound_T_1 = chosen.values.amin(dim=1, keepdim=True)
    offsets = torch.arange(size, device=x_T_V.device)[None, :, None] * groups
    ids_T_C = (chosen.indices[:, None, :] + offsets).flatten(1)
    if groups * size < vocab:
        rest = torch.arange(groups * size, vocab, device=x_T_V.device).expand(rows, -1)
        ids_T_C = torch.cat([ids_T_C, rest], dim=1)
    ids_T_K = _ordered(x_T_V.gather(1, ids_T_C), ids_T_C, k)
    # A token at the bound may also lie in a group that was not chosen.
    doubtful = torch.nonzero(x_T_V.gather(1, ids_T_K[:, -1:]) <= bound_T_1)[:, 0]
    if len(doubtful):
        ids_T_K[doubtful] = _with_lowest_ties(x_T_V[doubtful], ids_T_K[doubtful])
    return ids_T_K


def _with_lowest_ties(x_T_V: Tensor, ids_T_K: Tensor) -> Tensor:
    """Puts the lowest ids of the k-th value in the places of those that were found by chance."""
    x_T_K = x_T_V.gather(1, ids_T_K)
    kth_T_1 = x_T_K[:, -1:]
    above_T = (x_T_K > kth_T_1).sum(dim=1)
    rows, ids = torch.nonzero(x_T_V == kth_T_1, as_tuple=True)
    # By row, then by id: a tie's number within its row follows from where its row begins.
    ties_T = torch.bincount(rows, minlength=len(x_T_V))
    numbers = torch.arange(len(rows), device=rows.device) - (ties_T.cumsum(0) - ties_T)[rows]
    places = above_T[rows] + numbers
    wanted = places < ids_T_K.shape[1]
    ids_T_K[rows[wanted], places[wanted]] = ids[wanted]
    return ids_T_K


def _group_size(vocab: int, k: int) -> int:
    """Columns a group: the power of two that leaves as few maxima as candidates."""
    balanced = math.isqrt(vocab // (k + MARGIN))
    return 1 << (balanced.bit_length() - 1) if balanced >= _MIN_GROUP else 0


def _ordered(x_T_C: Tensor, ids_T_C: Tensor, k: int) -> Tensor:
    """The ids of the k largest x among candidates, equal x by ascending id."""
    bits = (x_T_C + 0.0).view(torch.int32)  # adding zero turns -0 into +0
    order = (bits ^ ((bits >> 31) & 0x7FFFFFFF)).long()
    keys = (order << 32) - ids_T_C
    return ids_T_C.gather(1, torch.topk(keys, k, dim=1).indices)
