"""Log-prob, entropy and rank on a GPU: from hidden states, and from logits that are there."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from benchmarks.gpu_cases import Case, Figure
from benchmarks.gpu_judging import Target, at_least, at_most, errors_within, judged, ranks_within
from benchmarks.gpu_sizes import Sizes, ids, normal
from benchmarks.gpu_timing import Sides, Work, buffers_for, extra_bytes
from benchmarks.limits import least_seconds
from benchmarks.peers import cut_cross_entropy, liger

Make = Callable[..., Work]
PEERS: dict[str, tuple[str, Make]] = {
    "Liger-Kernel": ("liger_kernel", liger.make),
    "cut-cross-entropy": ("cut_cross_entropy", cut_cross_entropy.make),
}
"""By name: the module that has to be there, and what makes its work."""

_ROUNDING = 1e-4
"""Of a logit, about ten times what its sum of products in fp32 loses."""


def logprobs(sizes: Sizes, device: str, limits: dict[str, Any]) -> Iterator[Case]:
    """Log-prob, entropy and rank from hidden states, and what follows the product by itself."""
    yield "log-prob, entropy, rank from logits", partial(after_product, sizes, device, limits)
    for rows in (sizes.rows, *sizes.few_rows):
        what = f"log-prob, entropy, rank of {rows} rows from hidden states"
        yield what, partial(linear_figure, sizes, rows, device, limits)


def linear_figure(sizes: Sizes, rows: int, device: str, limits: dict[str, Any]) -> Figure:
    from scoring_service.kernels import dispatch
    from scoring_service.kernels.linear_logprobs import LinearHead, linear_logprobs

    weight_V_H = normal((sizes.vocab, sizes.hidden), device, 1, torch.bfloat16)
    weight_V_H *= 2 * sizes.hidden**-0.5
    # The weight is larger than any cache, and each call reads all of it.
    hidden = [normal((rows, sizes.hidden), device, seed, torch.bfloat16) for seed in range(2)]
    targets_T = ids(rows, sizes.vocab, device)
    head = LinearHead(weight_V_H)

    def ours(route: str) -> Work:
        return lambda n: linear_logprobs(hidden[n], head, targets_T, route=route)

    sides = Sides(len(hidden))
    # The bare product leaves bf16 logits of all rows: what a head costs at least.
    sides.ours("bare product", lambda n: hidden[n] @ weight_V_H.t())
    route = dispatch.linear_route(torch.device(device), rows)
    products = 2 * rows * sizes.hidden * sizes.vocab
    read = 2 * (weight_V_H.numel() + rows * sizes.hidden)
    routes = list(dict.fromkeys(("fused", "tiled", route)))
    for name in routes:
        sides.ours(name, ours(name))
    ratio = sides.ratio(route, "bare product")
    targets = [at_most("times the bare product", ratio, 1.25)]
    if rows == sizes.rows:
        share = extra_bytes(ours(route)) / (4 * rows * sizes.vocab)
        targets.append(at_most("extra memory, of the full logits", share, 0.01))
    checks = list(linear_checks(hidden[0], head, targets_T, routes, sizes.checked))
    # Last: whatever becomes of the device, what is ours has been measured.
    for name, (module, make) in PEERS.items():
        if importlib.util.find_spec(module) is None:
            sides.missing(name)
        else:
            sides.peer(name, partial(make, hidden, weight_V_H, targets_T))
        targets.append(at_least(f"times {name}'s speed", sides.speed_over(name, route), 1.0))
    return {
        "what": "log-prob, entropy, rank from hidden states",
        "rows": rows,
        "route": route,
        "flops": products,
        "bytes": read,
        "floor_seconds": least_seconds(products, read, limits),
        "sides": sides.found,
        **judged(targets, checks, ours(route)),
    }


def linear_checks(
    hidden_T_H: Tensor, head: Any, targets_T: Tensor, routes: Sequence[str], rows: int
) -> Iterator[Target]:
    """Of the first rows by every route, whatever was computed beside them.

    Plain fp32's rows come of a product of the same shape: of a few rows alone a library may add up
    in another order, and err more or less.
    """
    from scoring_service.kernels.linear_logprobs import linear_logprobs, x_of

    ids_T = targets_T[:rows]
    x_T_V = hidden_T_H[:rows].double() @ head.weight_V_H.double().t()
    truth_T, entropy_T = numbers(x_T_V, ids_T)
    eager_T, eager_entropy_T = numbers(x_of(hidden_T_H, head)[:rows].clone(), ids_T)
    for name in routes:
        found = linear_logprobs(hidden_T_H, head, targets_T, route=name)
        logprobs_T, entropies_T = found.logprobs_T[:rows], found.entropies_T[:rows]
        yield errors_within(f"log-probs, {name}", logprobs_T, eager_T, truth_T)
        yield errors_within(f"entropies, {name}", entropies_T, eager_entropy_T, entropy_T)
        yield ranks_within(f"ranks, {name}", found.ranks_T[:rows], x_T_V, ids_T, _ROUNDING)


def numbers(x_T_V: Tensor, ids_T: Tensor) -> tuple[Tensor, Tensor]:
    """Log-probs of ids and entropies by torch's operators, in the type of x."""
    logprobs_T_V = torch.log_softmax(x_T_V, dim=1)
    entropy_T = torch.special.entr(logprobs_T_V.exp()).sum(dim=1)
    return logprobs_T_V.gather(1, ids_T[:, None])[:, 0], entropy_T


def after_product(sizes: Sizes, device: str, limits: dict[str, Any]) -> Figure:
    """What follows the product, on tiles of logits that are there."""
    from scoring_service.kernels.gpu.tile import TritonTile

    shape = (sizes.tile_rows, sizes.vocab)
    size = 4 * sizes.tile_rows * sizes.vocab
    tiles = [normal(shape, device, seed, torch.float32) for seed in range(buffers_for(size))]
    ids_T = ids(sizes.tile_rows, sizes.vocab, device)

    def ours(n: int) -> tuple[Tensor, Tensor, Tensor]:
        tile = TritonTile(tiles[n], targets_T=ids_T)
        return tile.logprobs_at(ids_T[:, None])[:, 0], tile.entropy(), tile.rank_of_targets()

    sides = Sides(len(tiles))
    sides.ours("ours", ours)
    rows = slice(0, sizes.checked)
    logprobs_T, entropies_T, ranks_T = ours(0)
    x_T_V = tiles[0][rows]
    truth_T, entropy_T = numbers(x_T_V.double(), ids_T[rows])
    eager_T, eager_entropy_T = numbers(x_T_V, ids_T[rows])
    checks = [
        errors_within("log-probs", logprobs_T[rows], eager_T, truth_T),
        errors_within("entropies", entropies_T[rows], eager_entropy_T, entropy_T),
        ranks_within("ranks", ranks_T[rows], x_T_V, ids_T[rows], 0.0),
    ]
    sides.peer("torch", lambda: lambda n: numbers(tiles[n], ids_T))
    targets = [at_least("times torch's speed", sides.speed_over("torch", "ours"), 6.0)]
    return {
        "what": "log-prob, entropy, rank from logits",
        "rows": sizes.tile_rows,
        "bytes": size,
        "floor_seconds": least_seconds(0, size, limits),
        "sides": sides.found,
        **judged(targets, checks, ours),
    }
