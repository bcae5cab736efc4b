"""The attention of a packed step by itself: one Triton launch, or two where chains are cut into
parts, beside torch's, a call a segment."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.gpu_cases import Case, Figure
from benchmarks.gpu_judging import at_most, judged
from benchmarks.gpu_timing import Sides, buffers_for, profile
from benchmarks.limits import least_seconds

HEADS, KV_HEADS, WIDTH = 16, 8, 128
"""Of the 1.5-billion-parameter Qwen 3 that `benchmarks.gpu` makes."""

Place = tuple[int, int]
"""Tokens of a segment, and positions before it."""

STEPS: dict[str, list[Place]] = {
    "completions of 512 after 1,024, in chunks": [(256, 1024 + 256 * (i % 2)) for i in range(32)],
    "16 of 32 segments deep in 16,384": [(256, 512 * i) for i in range(32)],
    "64 samples at 320": [(1, 320)] * 64,
    "256 samples at 2,048": [(1, 2048)] * 256,
    "1 sample at 8,192": [(1, 8192)],
    "1 sample at 32,000": [(1, 32_000)],
    "64 samples at 500": [(1, 500)] * 64,
    "a completion of 100 after 30,000": [(100, 30_000)],
    "a step of both": [(256, 1024)] * 24 + [(1, 600)] * 64,
}
DRY: dict[str, list[Place]] = {"both": [(5, 40), (9, 0), (1, 33)], "parts": [(1, 600), (1, 20)]}


def attention(sizes: Any, device: str, limits: dict[str, Any]) -> Iterator[Case]:
    """Of one layer, on steps of several kinds."""
    for name, places in (STEPS if device == "cuda" else DRY).items():
        yield f"attention, {name}", partial(attention_figure, name, places, device, limits)


@dataclass(frozen=True)
class _Step:
    """A layer's inputs, and the packings of both ways."""

    queries: Tensor
    keys: Tensor
    values: Tensor
    triton: Any
    torch: Any

    def attend(self, packing: Any) -> Tensor:
        from scoring_service.engine.attention.attention import packed_attention

        packing.layer = 0
        output, _ = packed_attention(
            torch.nn.Identity(), self.queries, self.keys, self.values, None, packing=packing
        )
        return output


def attention_figure(name: str, places: list[Place], device: str, limits: dict[str, Any]) -> Figure:
    # Keys and values that are kept are read once at least, by whoever attends to them.
    read = 2 * 2 * KV_HEADS * WIDTH * sum(before for _, before in places)
    count = buffers_for(read)
    steps = [make_step(places, torch.bfloat16, device, seed=seed) for seed in range(count)]
    pairs = sum(n * before + n * (n + 1) // 2 for n, before in places)
    products = 4 * HEADS * WIDTH * pairs

    def ours(n: int) -> Tensor:
        return steps[n].attend(steps[n].triton)

    sides = Sides(count)
    sides.ours("ours", ours)
    wide = make_step(places, torch.bfloat16, device, upcast=True)
    truth = wide.attend(wide.torch)
    error = float((ours(0).float() - truth).abs().max())
    # bfloat16 keeps eight bits; weights and outputs are both rounded to it.
    checks = [at_most("error", error, 2**-7 * float(truth.abs().max()))]
    sides.peer("torch", lambda: lambda n: steps[n].attend(steps[n].torch))
    return {
        "what": f"attention, {name}",
        "rows": sum(n for n, _ in places),
        "flops": products,
        "bytes": read,
        "floor_seconds": least_seconds(products, read, limits),
        "sides": sides.found,
        "times torch's speed": sides.speed_over("torch", "ours"),
        **judged([], checks, ours),
        "profile": profile(ours),
    }


def make_step(
    places: list[Place], dtype: torch.dtype, device: str, upcast: bool = False, seed: int = 0
) -> _Step:
    """A step whose earlier tokens lie in pages here and there."""
    from scoring_service.engine.attention.packing import Packing, SegmentTree, TreeNode
    from scoring_service.engine.attention.pages import PAGE_TOKENS, LayerShape, PagePool, slots_of

    kind = torch.float32 if upcast else dtype
    where = torch.device(device)
    generator = torch.Generator(device).manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        made = torch.randn(*shape, generator=generator, device=device).to(dtype)
        return made.to(kind)

    rows = sum(n for n, _ in places)
    pages = [-(-(before + n) // PAGE_TOKENS) for n, before in places]
    pool = PagePool([LayerShape(KV_HEADS, WIDTH, WIDTH)], sum(pages), kind, where)
    for tensor in (*pool.keys, *pool.values):
        tensor.copy_(normal(*tensor.shape))
    order = np.random.default_rng(0).permutation(sum(pages)).tolist()
    trees, decoding, listed = [], [], []
    row = 0
    for (tokens, before), count in zip(places, pages, strict=True):
        own = [order.pop() for _ in range(count)]
        slots = slots_of(own, before + tokens)
        listed.append((row, tokens, before, slots[:before]))
        if tokens == 1:
            decoding.append((row, slots))
        else:
            prefix = torch.from_numpy(slots[:before].copy()).to(where)
            trees.append(SegmentTree(prefix, (TreeNode(row, row + tokens, before),)))
        row += tokens
    # A sampled token's own key is kept, and read there by torch's way.
    kept = [(row, slots[-1]) for row, slots in decoding]
    kept_2_N = torch.tensor(kept, dtype=torch.int64, device=where).reshape(-1, 2).t()
    by_torch = Packing(
        rows=rows,
        trees=tuple(trees),
        decoding=tuple(decoding),
        kept_rows=kept_2_N[0].contiguous(),
        kept_slots=kept_2_N[1].contiguous(),
        pool=pool,
        device=where,
    )
    by_triton = replace(by_torch, by_triton=True, places=tuple(listed), trees=(), work={})
    return _Step(
        normal(1, rows, HEADS, WIDTH).transpose(1, 2),
        normal(1, rows, KV_HEADS, WIDTH).transpose(1, 2),
        normal(1, rows, KV_HEADS, WIDTH).transpose(1, 2),
        by_triton,
        by_torch,
    )
