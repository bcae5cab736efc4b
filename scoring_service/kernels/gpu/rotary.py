"""Rotary positions of a layer's queries and keys, in one launch.

Numerics: each product and each sum is rounded to the tensors' type, without fused multiply-adds:
every number has the bits of transformers' expression, signs of zeros included.

Twin: `kernels.body.EagerBody.rotate`, and a model's own function at load.

Legend: T tokens, D width of a head's rotated part.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from scoring_service.kernels.gpu.rounding import rounded

HEADS = 8
"""Of a program."""

WIDEST = 1024
"""Rotated part of a head, at most."""

WARPS = 4


@triton.jit
def turned(
    x_ptr, output_ptr, first, heads, head_stride, low_cos, low_sin, high_cos, high_sin,
    INTERPRETED: tl.constexpr, HALF: tl.constexpr, BLOCK: tl.constexpr, HEADS: tl.constexpr,
):  # fmt: skip
    """HEADS heads of a token from number `first` on; its heads lie side by side in `output`."""
    kind = output_ptr.dtype.element_ty
    head = first + tl.arange(0, HEADS)
    inner = tl.arange(0, BLOCK)
    inside = (head < heads)[:, None] & (inner < HALF)[None, :]
    source = x_ptr + head.to(tl.int64)[:, None] * head_stride + inner[None, :]
    low = tl.load(source, mask=inside, other=0.0).to(tl.float32)
    high = tl.load(source + HALF, mask=inside, other=0.0).to(tl.float32)
    target = output_ptr + head[:, None] * (2 * HALF) + inner[None, :]
    direct = rounded(low * low_cos, kind, INTERPRETED).to(tl.float32)
    across = rounded(high * low_sin, kind, INTERPRETED).to(tl.float32)
    tl.store(target, rounded(direct - across, kind, INTERPRETED), mask=inside)
    direct = rounded(high * high_cos, kind, INTERPRETED).to(tl.float32)
    across = rounded(low * high_sin, kind, INTERPRETED).to(tl.float32)
    tl.store(target + HALF, rounded(direct + across, kind, INTERPRETED), mask=inside)


@triton.jit(do_not_specialize=["queries", "keys"])
def rotate_heads(
    q_ptr,
    k_ptr,
    cos_ptr,
    sin_ptr,
    q_output_ptr,
    k_output_ptr,
    queries,
    keys,
    q_head_stride,
    q_row_stride,
    k_head_stride,
    k_row_stride,
    cos_stride,
    sin_stride,
    INTERPRETED: tl.constexpr,
    HALF: tl.constexpr,
    BLOCK: tl.constexpr,
    HEADS: tl.constexpr,
):
    """Program (token, block of heads): those of the queries first, then those of the keys."""
    row = tl.program_id(0).to(tl.int64)
    block = tl.program_id(1)
    inner = tl.arange(0, BLOCK)
    there = inner < HALF
    cos_ptr += row * cos_stride + inner
    sin_ptr += row * sin_stride + inner
    low_cos = tl.load(cos_ptr, mask=there, other=0.0).to(tl.float32)[None, :]
    low_sin = tl.load(sin_ptr, mask=there, other=0.0).to(tl.float32)[None, :]
    high_cos = tl.load(cos_ptr + HALF, mask=there, other=0.0).to(tl.float32)[None, :]
    high_sin = tl.load(sin_ptr + HALF, mask=there, other=0.0).to(tl.float32)[None, :]
    query_blocks = tl.cdiv(queries, HEADS)
    if block < query_blocks:
        turned(
            q_ptr + row * q_row_stride, q_output_ptr + row * queries * (2 * HALF), block * HEADS,
            queries, q_head_stride, low_cos, low_sin, high_cos, high_sin, INTERPRETED, HALF, BLOCK,
            HEADS,
        )  # fmt: skip
    else:
        turned(
            k_ptr + row * k_row_stride, k_output_ptr + row * keys * (2 * HALF),
            (block - query_blocks) * HEADS, keys, k_head_stride, low_cos, low_sin, high_cos,
            high_sin, INTERPRETED, HALF, BLOCK, HEADS,
        )  # fmt: skip


def rotate(q: Tensor, k: Tensor, cos_T_D: Tensor, sin_T_D: Tensor) -> tuple[Tensor, Tensor]:
    """x * cos + rotate_half(x) * sin of both.

    Args:
        q: [heads, T, D].
        k: [kv heads, T, D], of the same type.
        cos_T_D: likewise.
        sin_T_D: likewise.

    Returns:
        Shapes and types of `q` and `k`, dense as [T, heads, D].

    Raises:
        ValueError: shapes or types that do not fit, or an odd or too large D.
    """
    tokens, width = cos_T_D.shape
    if not q.shape[1:] == k.shape[1:] == sin_T_D.shape == (tokens, width):
        raise ValueError(f"{list(q.shape)} and {list(k.shape)} are not turned by {[tokens, width]}")
    if not q.dtype == k.dtype == cos_T_D.dtype == sin_T_D.dtype:
        raise ValueError(f"{q.dtype}, {k.dtype}, {cos_T_D.dtype} and {sin_T_D.dtype} are not one")
    if width % 2 or not 0 < width <= WIDEST:
        raise ValueError(f"heads of an even width up to {WIDEST} are turned, not of {width}")
    q, k, cos_T_D, sin_T_D = (
        x if x.stride(-1) == 1 else x.contiguous() for x in (q, k, cos_T_D, sin_T_D)
    )
    turned_q = torch.empty((tokens, len(q), width), dtype=q.dtype, device=q.device)
    turned_k = torch.empty((tokens, len(k), width), dtype=q.dtype, device=q.device)
    blocks = triton.cdiv(len(q), HEADS) + triton.cdiv(len(k), HEADS)
    if tokens and blocks:
        rotate_heads[(tokens, blocks)](
            q,
            k,
            cos_T_D,
            sin_T_D,
            turned_q,
            turned_k,
            len(q),
            len(k),
            q.stride(0),
            q.stride(1),
            k.stride(0),
            k.stride(1),
            cos_T_D.stride(0),
            sin_T_D.stride(0),
            INTERPRETED=not q.is_cuda,
            **tile_of(width),
            num_warps=WARPS,
            enable_fp_fusion=False,
        )
    return turned_q.transpose(0, 1), turned_k.transpose(0, 1)


def tile_of(width: int) -> dict[str, int]:
    """What the kernel is compiled for."""
    return {"HALF": width // 2, "BLOCK": triton.next_power_of_2(width // 2), "HEADS": HEADS}
