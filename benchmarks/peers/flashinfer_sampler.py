"""FlashInfer's sampler: softmax, then one token of probabilities, which is what engines call."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from benchmarks.gpu_timing import Work

DISTRIBUTION = "flashinfer-python"


def make(tiles: Sequence[Tensor], top_k_T: Tensor, top_p_T: Tensor, min_p_T: Tensor) -> Work:
    """Its function for the filters that the rows have: none pays for a filter that is off.

    Args:
        tiles: logits, float32 [T, V].
        top_k_T: int64; 0 = off.
        top_p_T: float64; 1 = off.
        min_p_T: float64; 0 = off.

    Raises:
        NotImplementedError: it has none for them.
    """
    from flashinfer import sampling

    by_k, by_p, by_min_p = bool(top_k_T.any()), bool((top_p_T < 1).any()), bool(min_p_T.any())
    if by_min_p and (by_k or by_p):
        raise NotImplementedError("min-p beside other filters")
    k_T = torch.where(top_k_T == 0, tiles[0].shape[1], top_k_T).int()
    p_T, m_T = top_p_T.float(), min_p_T.float()
    if by_k and by_p:
        both = sampling.top_k_top_p_sampling_from_probs
        order = {"filter_apply_order": "top_k_first", **seeded(both)}
        return lambda n: both(torch.softmax(tiles[n], dim=1), k_T, p_T, **order)
    if by_min_p:
        draw, parameters = sampling.min_p_sampling_from_probs, (m_T,)
    elif by_k:
        draw, parameters = sampling.top_k_sampling_from_probs, (k_T,)
    elif by_p:
        draw, parameters = sampling.top_p_sampling_from_probs, (p_T,)
    else:
        draw, parameters = sampling.sampling_from_probs, ()
    given = seeded(draw)
    return lambda n: draw(torch.softmax(tiles[n], dim=1), *parameters, **given)


def seeded(draw: Callable[..., Any]) -> dict[str, int]:
    """A seed and an offset where it takes them: without, it asks a generator on the host first.

    That costs time and keeps the call out of a graph.
    """
    taken = inspect.signature(draw).parameters
    return {"seed": 1, "offset": 0} if {"seed", "offset"} <= taken.keys() else {}
