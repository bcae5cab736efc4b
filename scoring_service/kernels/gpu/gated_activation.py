"""The activation of a gate times its partner, in one pass.

Numerics: the activation in fp32, rounded to the type of the gate as torch's operator leaves it,
then the product. exp and tanh are not torch's own and err by a few units of fp32's last place: in
half precision nearly all numbers have the bits of torch's operators, not all.

Twin: `kernels.body.EagerBody.gate`, and a model's own feed-forward layers at load.

Legend: N rows, F columns.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from scoring_service.kernels.body import GateForm
from scoring_service.kernels.gpu.layout import flat_rows
from scoring_service.kernels.gpu.rounding import rounded
from scoring_service.kernels.gpu.rows import tanh

BLOCK = 1024
"""Columns of a row that a program takes."""

WARPS = 4


@triton.jit
def activated_product(
    gate_ptr,
    up_ptr,
    output_ptr,
    gate_stride,
    up_stride,
    SILU: tl.constexpr,
    INTERPRETED: tl.constexpr,
    WIDTH: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Program (row, block of columns): SiLU of the gate, or GELU by tanh, times up; dense."""
    row = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = column < WIDTH
    x = tl.load(gate_ptr + row * gate_stride + column, mask=inside, other=0.0).to(tl.float32)
    up = tl.load(up_ptr + row * up_stride + column, mask=inside, other=0.0).to(tl.float32)
    if SILU:
        x = tl.div_rn(x, 1.0 + tl.exp(-x))
    else:
        # sqrt(2 / pi)
        x = 0.5 * x * (1.0 + tanh(0.7978845608028654 * (x + 0.044715 * (x * x * x))))
    kind = output_ptr.dtype.element_ty
    product = rounded(x, kind, INTERPRETED).to(tl.float32) * up
    tl.store(output_ptr + row * WIDTH + column, rounded(product, kind, INTERPRETED), mask=inside)


def gated_activation(form: GateForm, gate: Tensor, up: Tensor) -> Tensor:
    """activation(gate) * up, dense.

    Args:
        form: of the activation.
        gate: [..., F].
        up: the same shape and type.

    Raises:
        ValueError: another shape or type.
    """
    if gate.shape != up.shape or gate.dtype != up.dtype:
        raise ValueError(f"a gate {list(gate.shape)} of {gate.dtype} and {list(up.shape)}")
    output = torch.empty(gate.shape, dtype=gate.dtype, device=gate.device)
    if not output.numel():
        return output
    width = gate.shape[-1]
    gate_N_F, up_N_F = flat_rows(gate), flat_rows(up)
    activated_product[(len(gate_N_F), triton.cdiv(width, BLOCK))](
        gate_N_F,
        up_N_F,
        output,
        gate_N_F.stride(0),
        up_N_F.stride(0),
        SILU=form is GateForm.SILU,
        INTERPRETED=not gate.is_cuda,
        WIDTH=width,
        BLOCK=BLOCK,
        num_warps=WARPS,
        enable_fp_fusion=False,
    )
    return output
