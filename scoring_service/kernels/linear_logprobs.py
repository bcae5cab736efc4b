"""Log-probs of rows straight from their hidden states, with at most a tile of logits in memory.

Legend: T rows, H hidden, V vocabulary, C candidates.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor

from scoring_service.kernels import dispatch, reference
from scoring_service.kernels.precision import whole_factors
from scoring_service.kernels.prefix import check_range, row_temperatures
from scoring_service.kernels.tile import EagerTile

_TYPES = (torch.float32, torch.bfloat16, torch.float16)
_EAGER_ROWS = 64
_TILE_BYTES = {"cpu": 32 << 20, "cuda": 512 << 20}


@dataclass(frozen=True, slots=True)
class LinearHead:
    """The head of a model: x = finish(hidden @ weight.T + bias) / temperature.

    Attributes:
        weight_V_H: float32, bfloat16 or float16.
        bias_V: of any of them; None = none.
        multiplier: of the logits, before soft-capping; above 0.
        soft_cap: logits become cap * tanh(logits / cap), above 0; None = they do not.
    """

    weight_V_H: Tensor
    bias_V: Tensor | None = None
    multiplier: float = 1.0
    soft_cap: float | None = None


@dataclass(frozen=True, slots=True)
class LinearLogprobs:
    """Numbers of rows."""

    logprobs_T: Tensor
    """float32, of the targets; NaN where the target is negative or outside the vocabulary."""
    logsumexp_T: Tensor
    """float64."""
    entropies_T: Tensor
    """float32, nats."""
    ranks_T: Tensor
    """int32, of the targets; 0 where the target is negative, or at or past the limit."""
    best_ids_T: Tensor
    """int64: the most likely token, the lowest id among equals; some id of a row that is no
    distribution."""
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
        head: what makes logits of them. Routes of Triton want the columns of its weight side by
            side: a copy in each call would cost more than the call.
        targets_T: int64; of a negative one, log-prob NaN and rank 0. So it is of one outside the
            vocabulary where it cannot be refused: see below.
        temperatures: of all rows, or float32 [T].
        candidate_ids_T_C: int64 [T, C], or [1, C] for all rows; negative = not asked. Likewise.
        token_id_limit: only ids below it are ranked; a target past it has rank 0.
        route: "fused", "tiled" or "eager"; None = what `dispatch` takes. The fused route keeps no
            logits, and its rows have the same bits however many there are.

    Raises:
        ValueError: there is no such route, tensors do not fit each other, the columns of the
            weight are not side by side on a route of Triton, or, where that can be seen without
            waiting for a GPU's kernels, an id is outside the vocabulary or a temperature not
            above 0 and finite.
    """
    check_linear(hidden_T_H, head, targets_T)
    rows, device = len(targets_T), hidden_T_H.device
    temperatures_T = row_temperatures(temperatures, rows, device)
    route = route or dispatch.linear_route(device, rows)
    if route not in ("fused", "tiled", "eager"):
        raise ValueError(f"route {route!r} is none of fused, tiled, eager")
    if route == "eager" or device.type == "cpu":
        check_ids(targets_T, len(head.weight_V_H))
        if candidate_ids_T_C is not None:
            check_ids(candidate_ids_T_C, len(head.weight_V_H))
    limit = head.weight_V_H.shape[0] if token_id_limit is None else token_id_limit
    given = (hidden_T_H, head, targets_T, temperatures_T, candidate_ids_T_C, limit)
    with computing_on(hidden_T_H.device):
        return _eager(*given) if route == "eager" else _triton(route, *given)


def check_linear(hidden_T_H: Tensor, head: LinearHead, ids_T: Tensor | None = None) -> None:
    """Refuses states, heads and ids of rows that do not fit each other, and heads that are none.

    Raises:
        ValueError: so it is, or multiplier or soft-cap are not above 0 and finite.
    """
    weight_V_H, bias_V = head.weight_V_H, head.bias_V
    rows = hidden_T_H.shape[:1]
    fits = hidden_T_H.ndim == weight_V_H.ndim == 2 and weight_V_H.shape[1:] == hidden_T_H.shape[1:]
    if not fits or (ids_T is not None and ids_T.shape != rows):
        given = [hidden_T_H, weight_V_H] + ([] if ids_T is None else [ids_T])
        shapes = [list(tensor.shape) for tensor in given]
        raise ValueError(f"states, weight and ids have shapes {shapes}: not [T, H], [V, H], [T]")
    if bias_V is not None and bias_V.shape != weight_V_H.shape[:1]:
        raise ValueError(f"the bias has shape {list(bias_V.shape)}: not [{len(weight_V_H)}]")
    if hidden_T_H.dtype != weight_V_H.dtype or weight_V_H.dtype not in _TYPES:
        types = f"{hidden_T_H.dtype} and {weight_V_H.dtype}"
        raise ValueError(f"states and weight are {types}: one of float32, bfloat16 and float16")
    # With a 0 every row would be uniform.
    check_range("multiplier", head.multiplier, above=0.0)
    check_range("soft_cap", head.soft_cap, above=0.0)


def check_columns(weight_V_H: Tensor) -> None:
    """Refuses a weight that a kernel would misread.

    Raises:
        ValueError: its columns are not side by side.
    """
    if weight_V_H.shape[1] > 1 and weight_V_H.stride(1) != 1:
        raise ValueError("the weight's columns are not side by side: copy it once, contiguous()")


def check_ids(ids: Tensor, vocab: int) -> None:
    """Refuses ids past a vocabulary; on a device this waits for all that it does.

    Raises:
        ValueError: one is.
    """
    if ids.numel() and int(ids.max()) >= vocab:
        raise ValueError(f"id {int(ids.max())} is outside the vocabulary of {vocab}")


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
        candidates = candidates.masked_fill(_no_ids(ids_T_C, head), torch.nan)
    none_T = _no_ids(targets_T, head)
    return LinearLogprobs(
        logprobs_T=(x[:, 0].double() - found.logsumexp_T).float().masked_fill(none_T, torch.nan),
        logsumexp_T=found.logsumexp_T,
        entropies_T=found.entropy_T,
        ranks_T=found.rank_T.masked_fill(none_T | (targets_T >= limit), 0),
        # Of a row that is not a distribution there may be none.
        best_ids_T=found.best_T.long().clamp(max=len(head.weight_V_H) - 1),
        candidate_logprobs_T_C=candidates,
    )


def _no_ids(ids: Tensor, head: LinearHead) -> Tensor:
    """Where nothing is asked, or, on a GPU, what a vocabulary has not: no token, and not even one
    of probability 0.
    """
    return (ids < 0) | (ids >= len(head.weight_V_H))


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
    # Without rows there is a tile of none, whose numbers have the right types.
    for part in row_parts(max(rows, 1), len(head.weight_V_H), hidden_T_H.device, _EAGER_ROWS):
        tile = EagerTile(x_of(hidden_T_H[part], head) / temperatures_T[part, None])
        x_T_V, lse_T, ids_T = tile.x_T_V, tile.logsumexp_T, targets_T[part]
        numbers = {
            "logprobs_T": reference.logprobs_at(x_T_V, lse_T, ids_T[:, None])[:, 0],
            "logsumexp_T": lse_T,
            "entropies_T": tile.entropy(),
            "ranks_T": tile.rank(ids_T.clamp(min=0), limit).masked_fill(ids_T < 0, 0),
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

    Raises:
        ValueError: size < 1. No part would then hold the rows, and what is to be filled a part at
            a time would stay as it was allocated.
    """
    if size is not None and size < 1:
        raise ValueError(f"chunk_rows must be at least 1, got {size}")
    if size is None:
        size = max(1, _TILE_BYTES.get(device.type, _TILE_BYTES["cpu"]) // (4 * vocab))
    return [slice(start, start + size) for start in range(0, rows, size)]


def weight_parts(weight_V_H: Tensor) -> list[slice]:
    """Rows of a weight, as many as take a tile's bytes in float32."""
    vocab, hidden_size = weight_V_H.shape
    return row_parts(vocab, max(hidden_size, 1), weight_V_H.device)


@contextmanager
def computing_on(device: torch.device) -> Iterator[None]:
    """A context in which products are made of what they are given, where it lies.

    Callers may be inside `torch.autocast`, which would round fp32 states and weights to half
    precision, and the logits as well, and may have asked for TF32. And Triton launches on the
    thread's device, wherever its tensors are: a trainer may have its head on another GPU.
    """
    there = torch.cuda.device(device) if device.type == "cuda" else nullcontext()
    with torch.autocast(device.type, enabled=False), whole_factors(device.type), there:
        yield


def x_of(hidden_T_H: Tensor, head: LinearHead) -> Tensor:
    """Finished logits of rows at temperature 1, float32 [T, V]."""
    if hidden_T_H.is_cuda and hidden_T_H.dtype != torch.float32:
        logits_T_V = torch.mm(hidden_T_H, head.weight_V_H.t(), out_dtype=torch.float32)
    elif hidden_T_H.dtype == torch.float32:
        logits_T_V = torch.mm(hidden_T_H, head.weight_V_H.t())
    else:
        # A part of the weight in float32 at a time: all of it is twice the weight once more.
        wide_T_H = hidden_T_H.float()
        parts = [
            torch.mm(wide_T_H, head.weight_V_H[part].float().t())
            for part in weight_parts(head.weight_V_H)
        ]
        logits_T_V = torch.cat(parts, dim=1)
    if head.bias_V is not None:
        logits_T_V += head.bias_V
    if head.multiplier != 1.0:
        logits_T_V *= head.multiplier
    if head.soft_cap is not None:
        logits_T_V = torch.tanh(logits_T_V / head.soft_cap) * head.soft_cap
    return logits_T_V
