"""Log-probs of rows straight from their hidden states, with at most a tile of logits in memory.

Legend: T rows, H hidden, V vocabulary, C candidates.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from scoring_service.kernels import dispatch, reference
from scoring_service.kernels.tile import EagerTile

_EAGER_ROWS = 64
_TILE_BYTES = {"cpu": 32 << 20, "cuda": 512 << 20}


@dataclass(frozen=True, slots=True)
class LinearHead:
    """The head of a model: x = finish(hidden @ weight.T + bias) / temperature.

    Attributes:
        weight_V_H: float32, bfloat16 or float16.
        bias_V: of the same type; None = none.
        multiplier: of the logits, before soft-capping.
        soft_cap: logits become cap * tanh(logits / cap); None = they do not.
    """

    weight_V_H: Tensor
    bias_V: Tensor | None = None
    multiplier: float = 1.0
    soft_cap: float | None = None


@dataclass(frozen=True, slots=True)
class LinearLogprobs:
    """Numbers of rows."""

    logprobs_T: Tensor
    """float32, of the targets."""
    logsumexp_T: Tensor
    """float64."""
    entropies_T: Tensor
    """float32, nats."""
    ranks_T: Tensor
    """int32, of the targets."""
    best_ids_T: Tensor
    """int64: the most likely token, the lowest id among equals."""
    candidate_logprobs_T_C: Tensor | None = None
    """float32; NaN where no id was asked."""


def linear_logprobs(
    hidden_T_H: Tensor,
    head: LinearHead,
    targets_T: Tensor,
    *,
    temperatures: float | Tensor = 1.0,
    candidate_ids_T_C: Tensor | None = None,
    token_id_limit: int | None = None,
    route: str | None = None,
) -> LinearLogprobs:
    """Log-prob, logsumexp, entropy, rank and best token of rows, and log-probs of candidates.

    Args:
        hidden_T_H: of the weight's type.
        head: what makes logits of them.
        targets_T: int64.
        temperatures: of all rows, or float32 [T].
        candidate_ids_T_C: int64, -1 = not asked.
        token_id_limit: only ids below it are ranked; a target past it has rank 0.
        route: "fused", "tiled" or "eager"; None = what `dispatch` takes. The fused route keeps no
            logits, and its rows have the same bits however many there are.

    Raises:
        ValueError: there is no such route.
    """
    if isinstance(temperatures, float | int):
        temperatures_T = torch.full(
            (len(targets_T),), float(temperatures), device=hidden_T_H.device
        )
    else:
        temperatures_T = temperatures
    route = route or dispatch.linear_route(hidden_T_H.device, len(targets_T))
    if route not in ("fused", "tiled", "eager"):
        raise ValueError(f"route {route!r} is none of fused, tiled, eager")
    limit = head.weight_V_H.shape[0] if token_id_limit is None else token_id_limit
    given = (hidden_T_H, head, targets_T, temperatures_T, candidate_ids_T_C, limit)
    with without_autocast(hidden_T_H.device):
        return _eager(*given) if route == "eager" else _triton(route, *given)


def _triton(
    route: str,
    hidden_T_H: Tensor,
    head: LinearHead,
    targets_T: Tensor,
    temperatures_T: Tensor,
    candidate_ids_T_C: Tensor | None,
    limit: int,
) -> LinearLogprobs:
    # Imported where a CUDA device is, and nowhere else.
    from scoring_service.kernels.gpu import linear_head

    shard = linear_head.HeadShard(head.weight_V_H, head.bias_V, head.multiplier, head.soft_cap)
    logits, x = linear_head.logits_at(shard, hidden_T_H, temperatures_T, targets_T[:, None])
    rows = (shard, hidden_T_H, temperatures_T, targets_T)
    if route == "fused":
        partials = linear_head.fused_partials(*rows, x[:, 0], limit)
    else:
        partials = linear_head.tiled_partials(*rows, logits[:, 0], limit)
    found = partials.combine()
    candidates = None
    if candidate_ids_T_C is not None:
        ids_T_C = candidate_ids_T_C.expand(len(targets_T), -1)
        x_T_C = linear_head.logits_at(shard, hidden_T_H, temperatures_T, ids_T_C)[1]
        candidates = (x_T_C.double() - found.logsumexp_T[:, None]).float()
        candidates = candidates.masked_fill(ids_T_C < 0, torch.nan)
    return LinearLogprobs(
        logprobs_T=(x[:, 0].double() - found.logsumexp_T).float(),
        logsumexp_T=found.logsumexp_T,
        entropies_T=found.entropy_T,
        ranks_T=found.rank_T.masked_fill(targets_T >= limit, 0),
        best_ids_T=found.best_T.long(),
        candidate_logprobs_T_C=candidates,
    )


def _eager(
    hidden_T_H: Tensor,
    head: LinearHead,
    targets_T: Tensor,
    temperatures_T: Tensor,
    candidate_ids_T_C: Tensor | None,
    limit: int,
) -> LinearLogprobs:
    rows = len(targets_T)
    ids_T_C = None if candidate_ids_T_C is None else candidate_ids_T_C.expand(rows, -1)
    found = []
    for part in row_parts(rows, len(head.weight_V_H), hidden_T_H.device, _EAGER_ROWS):
        tile = EagerTile(x_of(hidden_T_H[part], head) / temperatures_T[part, None])
        x_T_V, lse_T, ids_T = tile.x_T_V, tile.logsumexp_T, targets_T[part]
        numbers = {
            "logprobs_T": reference.logprobs_at(x_T_V, lse_T, ids_T[:, None])[:, 0],
            "logsumexp_T": lse_T,
            "entropies_T": tile.entropy(),
            "ranks_T": tile.rank(ids_T, limit),
            "best_ids_T": reference.greedy(x_T_V),
        }
        if ids_T_C is not None:
            candidates = reference.logprobs_at(x_T_V, lse_T, ids_T_C[part])
            numbers["candidate_logprobs_T_C"] = candidates
        found.append(numbers)
    joined = {name: torch.cat([numbers[name] for numbers in found]) for name in found[0]}
    return LinearLogprobs(**joined)


def row_parts(rows: int, vocab: int, device: torch.device, size: int | None = None) -> list[slice]:
    """Rows a tile of logits at a time.

    Args:
        rows: how many there are.
        vocab: logits of each.
        device: decides the size of a tile: a GPU reads the whole weight for each.
        size: rows of a tile; None = what suits the device.
    """
    if size is None:
        size = max(1, _TILE_BYTES.get(device.type, _TILE_BYTES["cpu"]) // (4 * vocab))
    return [slice(start, start + size) for start in range(0, rows, size)]


def without_autocast(device: torch.device) -> torch.autocast:
    """A context in which products are made of what they are given.

    Callers may be inside `torch.autocast`, which would round fp32 states and weights to half
    precision, and the logits as well.
    """
    return torch.autocast(device.type, enabled=False)


def x_of(hidden_T_H: Tensor, head: LinearHead) -> Tensor:
    """Finished logits of rows at temperature 1, float32 [T, V]."""
    if hidden_T_H.is_cuda and hidden_T_H.dtype != torch.float32:
        logits_T_V = torch.mm(hidden_T_H, head.weight_V_H.t(), out_dtype=torch.float32)
    else:
        logits_T_V = torch.mm(hidden_T_H.float(), head.weight_V_H.float().t())
    if head.bias_V is not None:
        logits_T_V += head.bias_V
    if head.multiplier != 1.0:
        logits_T_V *= head.multiplier
    if head.soft_cap is not None:
        logits_T_V = torch.tanh(logits_T_V / head.soft_cap) * head.soft_cap
    return logits_T_V
