"""What vLLM's PyTorch `apply_top_k_top_p` means, written anew: the trainer's replay arithmetic.

Semantics, not code, of vllm/v1/sample/ops/topk_topp_sampler.py with its ascending sort made stable:
ties at the k-th value stay; the softmax of what is left is summed upwards in fp32; tokens whose sum
is at most 1 - p go; the best token never does.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


def support(x_T_V: Tensor, top_k: int = 0, top_p: float = 1.0) -> Tensor:
    """The tokens left after top-k and top-p, bool [T, V]."""
    ascending, ids = torch.sort(x_T_V, dim=1, stable=True)
    vocab = x_T_V.shape[1]
    if 0 < top_k < vocab:
        threshold = ascending[:, vocab - top_k].unsqueeze(1)
        ascending = torch.where(ascending < threshold, -math.inf, ascending)
    gone = ascending == -math.inf
    if top_p < 1.0:
        cumulative = torch.softmax(ascending, dim=1).cumsum(dim=1)
        below = cumulative <= 1 - torch.tensor(top_p, dtype=torch.float32)
        below[:, -1] = False
        gone = gone | below
    keep = torch.empty_like(gone)
    return keep.scatter_(1, ids, ~gone)
