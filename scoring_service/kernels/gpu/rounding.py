"""fp32 numbers in the type that they are kept in, rounded as torch does: ties go to even ones."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def rounded(x, kind: tl.constexpr, INTERPRETED: tl.constexpr):
    """fp32 x as numbers of a type.

    The interpreter cuts off what bfloat16 has no bits for: there x is rounded beforehand.
    """
    if INTERPRETED and kind == tl.bfloat16:
        bits = x.to(tl.int32, bitcast=True)
        nearest = (bits + 0x7FFF + ((bits >> 16) & 1)) & -65536
        # To the bits of NaN and infinities nothing is added.
        x = tl.where(tl.abs(x) < float("inf"), nearest.to(tl.float32, bitcast=True), x)
    return x.to(kind)
