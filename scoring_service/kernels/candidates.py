"""The most likely tokens of each row, found through maxima of groups of columns.

The k-th largest group maximum is a lower bound of the k-th largest value, so everything above it
lies in the groups that reach it. Those are read again, and a few thousand columns are sorted
instead of the vocabulary. Ties go to the lower id, exactly.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from scoring_service.kernels import reference

MARGIN = 16
"""Groups read beyond k, so that ties at the bound seldom need a second look."""

_LEAST_GROUP = 4
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
    doubtful_T = (x_T_V.gather(1, ids_T_K[:, -1:]) <= bound_T_1)[:, 0]
    if bool(doubtful_T.any()):
        ids_T_K[doubtful_T] = reference.top_k_ids(x_T_V[doubtful_T], k)
    return ids_T_K


def _group_size(vocab: int, k: int) -> int:
    """Columns a group: the power of two that leaves as few maxima as candidates."""
    balanced = math.isqrt(vocab // (k + MARGIN))
    return 1 << (balanced.bit_length() - 1) if balanced >= _LEAST_GROUP else 0


def _ordered(x_T_C: Tensor, ids_T_C: Tensor, k: int) -> Tensor:
    """The ids of the k largest x among candidates, equal x by ascending id."""
    bits = (x_T_C + 0.0).view(torch.int32)  # adding zero turns -0 into +0
    order = (bits ^ ((bits >> 31) & 0x7FFFFFFF)).long()
    keys = (order << 32) - ids_T_C
    return ids_T_C.gather(1, torch.topk(keys, k, dim=1).indices)
