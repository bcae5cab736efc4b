"""What the kernels share: a logit to x, x to a key that orders like it, x to a nucleus mass."""

from __future__ import annotations

import triton
import triton.language as tl

BLOCK_COLUMNS = 4096
"""Columns of a row that one program of a split row takes. A row is split by V alone, never by how
many rows there are: the same row has the same bits in any batch."""


@triton.jit
def tanh(y):
    """Hyperbolic tangent in fp32: the interpreter has no library to call.

    To 2 ulp, were exponentials and divisions right; by those of a GPU, which err by 2 ulp each, to
    5. Near 0 the polynomial of Cephes' tanhf, elsewhere 1 - 2 / (exp(2y) + 1).
    """
    z = y * y
    p = -5.70498872745e-3
    p = p * z + 2.06390887954e-2
    p = p * z - 5.37397155531e-2
    p = p * z + 1.33314422036e-1
    p = p * z - 3.33332819422e-1
    near = p * z * y + y
    size = tl.abs(y)
    far = 1.0 - 2.0 / (tl.exp(2.0 * size) + 1.0)
    far = tl.where(y < 0, -far, far)
    return tl.where(size < 0.625, near, far)


@triton.jit
def finished(
    logits, multiplier, soft_cap, temperature, SCALED: tl.constexpr, CAPPED: tl.constexpr,
    TEMPERED: tl.constexpr = True,
):  # fmt: skip
    """x of what the head's product left: scaled, soft-capped, divided by the temperature in fp32.

    Divisions are correctly rounded, so that x has the bits that torch gives it.
    """
    x = logits.to(tl.float32)
    if SCALED:
        x = x * multiplier
    if CAPPED:
        cap = tl.zeros_like(x) + soft_cap
        x = tanh(tl.div_rn(x, cap)) * soft_cap
    if TEMPERED:
        x = tl.div_rn(x, tl.zeros_like(x) + temperature)
    return x


@triton.jit
def ordered(x):
    """int32 keys that order like fp32 x; -0 and +0 are one key."""
    bits = (x + 0.0).to(tl.int32, bitcast=True)
    return bits ^ ((bits >> 31) & 0x7FFFFFFF)


@triton.jit
def unordered(keys):
    """The x of an `ordered` key."""
    return (keys ^ ((keys >> 31) & 0x7FFFFFFF)).to(tl.float32, bitcast=True)


@triton.jit
def nucleus_mass(x, max_x):
    """int64(exp(x - max) * 2**40), exp in float64, as `reference` has it."""
    below = x.to(tl.float64) - max_x.to(tl.float64)
    return (tl.exp(below) * 1099511627776.0).to(tl.int64)
