"""One token a row from logits on a GPU, with every mix of filters."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor

from benchmarks.gpu_cases import Case, Figure
from benchmarks.gpu_judging import at_least, at_most, judged
from benchmarks.gpu_sizes import Sizes, normal
from benchmarks.gpu_timing import Sides, buffers_for
from benchmarks.limits import least_seconds
from benchmarks.peers import flashinfer_sampler

SETTINGS: dict[str, dict[str, float]] = {
    "no filter": {},
    "k 50": {"top_k": 50},
    "p 0.9": {"top_p": 0.9},
    "k 50, p 0.9": {"top_k": 50, "top_p": 0.9},
    "min-p 0.05": {"min_p": 0.05},
    "p 0.1": {"top_p": 0.1},
    "flat, p 0.99": {"top_p": 0.99},
    "mixed": {},
}


def sampler(sizes: Sizes, device: str, limits: dict[str, Any]) -> Iterator[Case]:
    """One token a row from logits, with every mix of filters."""
    for batch in sizes.batches:
        for name in SETTINGS:
            what = f"sample, {name}, batch {batch}"
            yield what, partial(sampler_figure, sizes, batch, name, device, limits)


def sampler_figure(
    sizes: Sizes, batch: int, name: str, device: str, limits: dict[str, Any]
) -> Figure:
    from scoring_service.kernels.gpu.tile import TritonTile

    size = 4 * batch * sizes.vocab
    spread = 0.1 if name.startswith("flat") else 2.0
    tiles = [
        normal((batch, sizes.vocab), device, seed, torch.float32) * spread
        for seed in range(buffers_for(size))
    ]
    filters = filters_of(name, batch, device)
    numbers_T = torch.arange(batch, device=device)

    def ours(n: int) -> Tensor:
        tile = TritonTile(tiles[n])
        found = None if name == "no filter" else tile.support(*filters)
        return tile.draw_from(found, numbers_T, numbers_T, numbers_T)

    sides = Sides(len(tiles))
    sides.ours("ours", ours)
    wrong = wrong_tokens(tiles[0], filters, ours(0), sizes.checked)
    checks = [at_most("tokens that are not the reference's", wrong, 0)]
    if importlib.util.find_spec("flashinfer") is None:
        sides.missing("FlashInfer")
    else:
        sides.peer("FlashInfer", lambda: flashinfer_sampler.make(tiles, *filters))
    ratio = sides.speed_over("FlashInfer", "ours")
    targets = [at_least("times FlashInfer's speed", ratio, 2.0)]
    return {
        "what": f"sample, {name}",
        "rows": batch,
        "bytes": size,
        "floor_seconds": least_seconds(0, size, limits),
        "sides": sides.found,
        **judged(targets, checks, ours),
    }


Filters = tuple[Tensor, Tensor, Tensor]


def filters_of(name: str, batch: int, device: str) -> Filters:
    """top_k int64, top_p and min_p float64 of each row."""
    rows = [SETTINGS[name]] * batch
    if name == "mixed":
        rows = [list(SETTINGS.values())[row % 7] for row in range(batch)]
    top_k_T = torch.tensor([int(r.get("top_k", 0)) for r in rows], device=device)
    top_p_T, min_p_T = (
        torch.tensor([r.get(key, off) for r in rows], dtype=torch.float64, device=device)
        for key, off in (("top_p", 1.0), ("min_p", 0.0))
    )
    return top_k_T, top_p_T, min_p_T


def wrong_tokens(x_T_V: Tensor, filters: Filters, drawn_T: Tensor, rows: int) -> int:
    """Of the first rows, those whose token is not the reference's.

    Where the two best keys are closer than 8e-6 it may be another; of the rows checked in a run,
    that happens to one in a thousand runs.
    """
    from scoring_service.kernels import reference

    top_k_T, top_p_T, min_p_T = filters
    wrong = 0
    for row in range(min(len(x_T_V), rows)):
        x_1_V = x_T_V[row : row + 1]
        keep = reference.support(x_1_V, int(top_k_T[row]), float(top_p_T[row]), float(min_p_T[row]))
        want = reference.draw(x_1_V, keep, [row], [row], [row])
        wrong += int(want.item() != drawn_T[row].item())
    return wrong
