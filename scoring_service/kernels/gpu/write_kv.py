"""Keys and values of a step's tokens to where a layer keeps them: one launch for both.

Rows are read where the layer's products left them, and nothing is gathered before. Places are 64
bits wide: a layer's pages may hold more than 2^31 numbers.

Numerics: none; numbers are moved.

Twin: `engine.packed.pages.PagePool.write` of gathered rows.

Legend: T kept tokens, D width of keys, Dv of values.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

BLOCK_TOKENS = 16
"""Of a program: a page's."""


@triton.jit
def moved(
    from_ptr, to_ptr, rows, slots, there, row_stride, D: tl.constexpr, WIDTH: tl.constexpr
):  # fmt: skip
    """Moves a head's numbers of a block of tokens."""
    column = tl.arange(0, WIDTH)[None, :]
    inside = there[:, None] & (column < D)
    numbers = tl.load(from_ptr + rows[:, None] * row_stride + column, mask=inside, other=0.0)
    tl.store(to_ptr + slots[:, None] * D + column, numbers, mask=inside)


@triton.jit(
    do_not_specialize=["tokens"], do_not_specialize_on_alignment=["rows_ptr", "slots_ptr"]
)  # fmt: skip
def write_kv_rows(
    key_ptr,
    value_ptr,
    kept_key_ptr,
    kept_value_ptr,
    rows_ptr,
    slots_ptr,
    tokens,
    key_head_stride,
    key_row_stride,
    value_head_stride,
    value_row_stride,
    kept_key_stride,
    kept_value_stride,
    D: tl.constexpr,
    DV: tl.constexpr,
    WIDTH: tl.constexpr,
    VALUE_WIDTH: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Program (block of tokens, head of keys)."""
    token = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    head = tl.program_id(1).to(tl.int64)
    there = token < tokens
    rows = tl.load(rows_ptr + token, mask=there, other=0)
    slots = tl.load(slots_ptr + token, mask=there, other=-1)
    there = slots >= 0
    moved(
        key_ptr + head * key_head_stride, kept_key_ptr + head * kept_key_stride,
        rows, slots, there, key_row_stride, D, WIDTH,
    )  # fmt: skip
    moved(
        value_ptr + head * value_head_stride, kept_value_ptr + head * kept_value_stride,
        rows, slots, there, value_row_stride, DV, VALUE_WIDTH,
    )  # fmt: skip


def write_kv(
    keys: Tensor, values: Tensor, kept: tuple[Tensor, Tensor], rows_T: Tensor, slots_T: Tensor
) -> None:
    """Writes rows of a step to their slots.

    Args:
        keys: [kv heads, rows of the step, D]; elements of a head side by side, as in the values.
        values: [kv heads, rows of the step, Dv].
        kept: keys [kv heads, slots, D] and values [kv heads, slots, Dv], written; contiguous.
        rows_T: int64, at least one.
        slots_T: int64, each of them once; -1 = the row is kept nowhere.
    """
    if not keys.stride(2) == values.stride(2) == 1:
        keys, values = keys.contiguous(), values.contiguous()
    kept_keys, kept_values = kept
    width, value_width = keys.shape[2], values.shape[2]
    write_kv_rows[(triton.cdiv(len(rows_T), BLOCK_TOKENS), keys.shape[0])](
        keys,
        values,
        kept_keys,
        kept_values,
        rows_T,
        slots_T,
        len(rows_T),
        keys.stride(0),
        keys.stride(1),
        values.stride(0),
        values.stride(1),
        kept_keys.stride(0),
        kept_values.stride(0),
        D=width,
        DV=value_width,
        WIDTH=triton.next_power_of_2(width),
        VALUE_WIDTH=triton.next_power_of_2(value_width),
        BLOCK=BLOCK_TOKENS,
        num_warps=4,
    )
