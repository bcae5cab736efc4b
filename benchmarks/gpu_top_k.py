"""Lists of the most likely tokens on a GPU: from logits, and with the product before them."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor

from benchmarks.gpu_cases import Case, Figure
from benchmarks.gpu_judging import Target, at_least, at_most, errors_within, judged
from benchmarks.gpu_sizes import Sizes, normal
from benchmarks.gpu_timing import Sides, buffers_for
from benchmarks.limits import least_seconds


def top_k(sizes: Sizes, device: str, limits: dict[str, Any]) -> Iterator[Case]:
    """Lists of the most likely tokens from tiles of logits, and the products before them."""
    for k in sizes.ks:
        yield f"top {k} with log-probs and tail", partial(top_k_figure, sizes, k, device, limits)


def top_k_figure(sizes: Sizes, k: int, device: str, limits: dict[str, Any]) -> Figure:
    from scoring_service.kernels.gpu.tile import TritonTile
    from scoring_service.kernels.linear_logprobs import LinearHead, x_of

    shape = (sizes.tile_rows, sizes.vocab)
    size = 4 * sizes.tile_rows * sizes.vocab
    tiles = [normal(shape, device, seed, torch.float32) for seed in range(buffers_for(size))]
    # The weight is larger than any cache, and each call reads all of it.
    states = [normal((sizes.tile_rows, sizes.hidden), device, n, torch.bfloat16) for n in range(2)]
    weight_V_H = normal((sizes.vocab, sizes.hidden), device, 2, torch.bfloat16)
    weight_V_H *= 2 * sizes.hidden**-0.5
    head = LinearHead(weight_V_H)

    def lists(logits_T_V: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        tile = TritonTile(logits_T_V)
        ids_T_K = tile.top_k_ids(k, sizes.vocab)
        return ids_T_K, tile.logprobs_at(ids_T_K), tile.log_tail_mass(ids_T_K)

    def ours(n: int) -> object:
        return lists(tiles[n])

    def whole(n: int) -> object:
        """As a step has it: the product into fp32 logits, and the lists of them."""
        return lists(x_of(states[n], head))

    products = Sides(len(states))
    products.ours("bare product", lambda n: states[n] @ weight_V_H.t())
    products.ours("product and lists", whole)
    together = products.ratio("product and lists", "bare product")
    sides = Sides(len(tiles))
    sides.ours("ours", ours)
    sides.ours("ours, selection", lambda n: TritonTile(tiles[n]).top_k_ids(k, sizes.vocab))
    checks = list_checks(tiles[0][: sizes.checked], *(part[: sizes.checked] for part in ours(0)))
    sides.peer("torch.topk", lambda: lambda n: torch.topk(tiles[n], k, dim=1))
    ratio = sides.speed_over("torch.topk", "ours, selection")
    targets = [at_least("times torch.topk's speed", ratio, 4.0)]
    if k == sizes.ks[0]:
        what = "times the bare product, product and lists together"
        targets.append(at_most(what, together, 1.35))
    return {
        "what": f"top {k} with log-probs and tail",
        "rows": sizes.tile_rows,
        "bytes": size,
        "floor_seconds": least_seconds(0, size, limits),
        "sides": products.found | sides.found,
        **judged(targets, checks, ours),
    }


def list_checks(x_T_V: Tensor, ids_T_K: Tensor, found_T_K: Tensor, tails_T: Tensor) -> list[Target]:
    """Ids against a stable sort of the same rows, log-probs and tails against float64."""
    k = ids_T_K.shape[1]
    order_T_V = x_T_V.double().sort(dim=1, descending=True, stable=True).indices
    truth_T_V = torch.log_softmax(x_T_V.double(), dim=1)
    tail_T = truth_T_V.gather(1, order_T_V[:, k:]).logsumexp(dim=1)
    want_T_K = order_T_V[:, :k]
    eager_T_K = torch.log_softmax(x_T_V, dim=1).gather(1, want_T_K)
    wrong = int((ids_T_K != want_T_K).sum())
    tail_error = float((tails_T.double() - tail_T).abs().max())
    return [
        at_most("ids that are not the list's", wrong, 0),
        errors_within("log-probs", found_T_K, eager_T_K, truth_T_V.gather(1, want_T_K)),
        at_most("relative error of tails", tail_error, 1e-5),
    ]
