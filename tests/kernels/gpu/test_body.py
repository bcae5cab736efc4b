"""The kernels between a layer's products against transformers' own modules, run eagerly."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers.activations import ACT2FN
from transformers.models.gemma3.modeling_gemma3 import Gemma3RMSNorm
from transformers.models.llama.modeling_llama import LlamaRMSNorm, apply_rotary_pos_emb
from transformers.models.olmo2.modeling_olmo2 import Olmo2RMSNorm
from transformers.models.qwen3.modeling_qwen3 import Qwen3RMSNorm

from scoring_service.kernels.body import EagerBody, GateForm, NormForm
from scoring_service.kernels.gpu import rms_norm, rotary
from scoring_service.kernels.gpu.body import TritonBody
from tests.kernels.gpu.device import DEVICE

BODY = TritonBody()
EPS = 1e-5
QUIET = pytest.mark.filterwarnings("ignore::RuntimeWarning")
"""The interpreter's numpy says what it meets."""
SHARE = 0.999 if DEVICE.type == "cpu" else 0.99
"""Of numbers in half precision that have torch's bits. A device has a reciprocal root of its own:
one that errs by a unit of fp32 rounds one number in ten thousand another way, and some cases have
few hundreds."""
DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
NORMS: dict[str, tuple[Any, NormForm]] = {
    "llama": (LlamaRMSNorm, NormForm.ROUNDED),
    "qwen3": (Qwen3RMSNorm, NormForm.ROUNDED),
    "gemma3": (Gemma3RMSNorm, NormForm.OFFSET),
    "olmo2": (Olmo2RMSNorm, NormForm.ONCE),
}
GATES = {"silu": GateForm.SILU, "gelu_pytorch_tanh": GateForm.GELU_TANH}
SHAPES = [
    (0, 64), (1, 1), (127, 3), (127, 64), (1, 576), (5, 1000), (3, 4096), (1, 9000),
]  # fmt: skip
"""Rows and columns."""


def draw(*shape: int, dtype: torch.dtype, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return (3 * torch.randn(*shape, generator=generator)).to(DEVICE, dtype)


def norm_of(name: str, width: int, dtype: torch.dtype) -> tuple[nn.Module, NormForm]:
    kind, form = NORMS[name]
    module = kind(width, eps=EPS).to(DEVICE, dtype)
    with torch.no_grad():
        module.weight.copy_(draw(width, dtype=dtype, seed=7))
    return module, form


def assert_like_eager(found: Tensor, expected: Tensor, share: float) -> None:
    """Two units of the last place apart at most, and in half precision mostly the same bits.

    In float32 the sum of squares alone has other bits: the others follow from it.
    """
    assert (found.shape, found.dtype) == (expected.shape, expected.dtype)
    rtol = 2e-6 if found.dtype == torch.float32 else 2 * torch.finfo(found.dtype).eps
    torch.testing.assert_close(found, expected, rtol=rtol, atol=1e-7)
    if found.dtype != torch.float32 and found.numel() > 100:
        assert (found == expected).float().mean() >= share


def assert_same_bits(found: Tensor, expected: Tensor) -> None:
    """Signs of zeros included; every NaN is as good as another."""
    assert (found.shape, found.dtype) == (expected.shape, expected.dtype)
    assert torch.equal(found.isnan(), expected.isnan())
    found, expected = found.nan_to_num(1.0, float("inf")), expected.nan_to_num(1.0, float("inf"))
    assert torch.equal(found, expected)
    assert torch.equal(found.signbit(), expected.signbit())


@DTYPES
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("name", NORMS)
def test_norms(name: str, shape: tuple[int, int], dtype: torch.dtype) -> None:
    module, form = norm_of(name, shape[1], dtype)
    rows = draw(1, *shape, dtype=dtype)
    with torch.inference_mode():
        expected = module(rows)
        found = BODY.norm(form, rows, module.weight, EPS)
    assert_like_eager(found, expected, SHARE)


@DTYPES
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_norms_of_sums(shape: tuple[int, int], dtype: torch.dtype) -> None:
    """The sum has torch's bits, and the norm is that of the sum as it was rounded."""
    module, form = norm_of("llama", shape[1], dtype)
    residual, rows = draw(*shape, dtype=dtype), draw(*shape, dtype=dtype, seed=1)
    with torch.inference_mode():
        total, found = BODY.add_norm(form, residual, rows, module.weight, EPS)
        assert torch.equal(total, residual + rows)
        assert_like_eager(found, module(residual + rows), SHARE)


@pytest.mark.parametrize("name", NORMS)
def test_a_float32_stream_above_a_half_precision_body(name: str) -> None:
    """Norms give the weight's type, rounded once; sums stay float32."""
    module, form = norm_of(name, 576, torch.bfloat16)
    residual, rows = (
        draw(9, 576, dtype=dtype, seed=seed)
        for seed, dtype in enumerate((torch.float32, torch.bfloat16))
    )
    with torch.inference_mode():
        total, found = BODY.add_norm(form, residual, rows, module.weight, EPS)
        assert torch.equal(total, residual + rows)
        assert_like_eager(found, module(total).to(torch.bfloat16), SHARE)
        alone = BODY.norm(form, total, module.weight, EPS)
    assert torch.equal(alone, found)


def laid_out(kind: str, tokens: int, heads: int, width: int, dtype: torch.dtype) -> Tensor:
    """[1, tokens, heads, width], as layers leave it."""
    if kind == "transposed":
        return draw(1, heads, tokens, width, dtype=dtype).transpose(1, 2)
    if kind == "part of wider rows":
        return draw(1, tokens, heads, width + 16, dtype=dtype)[..., 16:]
    if kind == "every second":
        return draw(1, tokens, heads, 2 * width, dtype=dtype)[..., ::2]
    return draw(1, tokens, heads * width, dtype=dtype).view(1, tokens, heads, width)


LAYOUTS = pytest.mark.parametrize(
    "layout", ["heads side by side", "transposed", "part of wider rows", "every second"]
)


@DTYPES
@LAYOUTS
def test_norms_of_heads(layout: str, dtype: torch.dtype) -> None:
    module, form = norm_of("qwen3", 64, dtype)
    rows = laid_out(layout, 33, 3, 64, dtype)
    with torch.inference_mode():
        expected = module(rows)
        assert_like_eager(BODY.norm(form, rows, module.weight, EPS), expected, SHARE)


@QUIET
@DTYPES
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("name", GATES)
def test_gates(name: str, shape: tuple[int, int], dtype: torch.dtype) -> None:
    gate, up = draw(*shape, dtype=dtype), draw(*shape, dtype=dtype, seed=1)
    expected = ACT2FN[name](gate) * up
    # Below -3 GELU's 1 + tanh is what two rounded numbers leave.
    assert_like_eager_gate(BODY.gate(GATES[name], gate, up), expected, gate, up)


def assert_like_eager_gate(found: Tensor, expected: Tensor, gate: Tensor, up: Tensor) -> None:
    assert (found.shape, found.dtype) == (expected.shape, expected.dtype)
    slack = 2e-7 * gate.float().abs() * up.float().abs()
    rtol = 2e-6 if found.dtype == torch.float32 else 2 * torch.finfo(found.dtype).eps
    error = (found.float() - expected.float()).abs()
    assert (error <= rtol * expected.float().abs() + 3 * slack + 1e-7).all()
    if found.dtype != torch.float32 and found.numel() > 100:
        assert (found == expected).float().mean() >= 0.98


@LAYOUTS
def test_gates_that_are_no_tensors_of_their_own(layout: str) -> None:
    gate, up = (laid_out(kind, 5, 2, 24, torch.bfloat16) for kind in ("transposed", layout))
    found = BODY.gate(GateForm.SILU, gate, up)
    assert torch.equal(found, BODY.gate(GateForm.SILU, gate.contiguous(), up.contiguous()))
    assert_like_eager_gate(found, nn.functional.silu(gate) * up, gate, up)


def tables(tokens: int, width: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(3)
    angles = 6.3 * torch.rand(tokens, width // 2, generator=generator).repeat(1, 2)
    return angles.cos().to(DEVICE, dtype), angles.sin().to(DEVICE, dtype)


@DTYPES
@LAYOUTS
@pytest.mark.parametrize(
    ("heads", "kv_heads", "tokens", "width"),
    [(1, 1, 1, 2), (9, 3, 5, 64), (4, 17, 3, 80), (8, 1, 2, 128), (3, 2, 0, 16)],
)
def test_rotation(
    layout: str, heads: int, kv_heads: int, tokens: int, width: int, dtype: torch.dtype
) -> None:
    """Every bit is transformers', also of the first part of wider heads."""
    q = laid_out(layout, tokens, heads, width, dtype).transpose(1, 2)
    k = laid_out(layout, tokens, kv_heads, width, dtype).transpose(1, 2)
    cos, sin = tables(tokens, width, dtype)
    expected = apply_rotary_pos_emb(q, k, cos[None], sin[None])
    for found, want in zip(BODY.rotate(q[0], k[0], cos, sin), expected, strict=True):
        assert_same_bits(found, want[0])


SPECIAL = [0.0, -0.0, float("inf"), -float("inf"), float("nan"), 1.0, -1.0, 3e4, -3e4]


@QUIET
@DTYPES
@pytest.mark.parametrize("name", ["llama", "gemma3"])
def test_norms_of_what_is_not_finite(name: str, dtype: torch.dtype) -> None:
    """A row alone suffers from its infinities and NaN; zeros keep their signs."""
    rows = torch.zeros(4, 16, dtype=dtype, device=DEVICE)
    rows[0, ::2] = -0.0
    rows[1] = draw(16, dtype=dtype)
    rows[1, 3] = float("inf")
    rows[2, 5] = float("nan")
    rows[3, 4] = -float("inf")
    rows[3, 5] = -0.0
    module, form = norm_of(name, 16, dtype)
    with torch.inference_mode():
        assert_same_bits(BODY.norm(form, rows, module.weight, EPS), module(rows))


@QUIET
@DTYPES
@pytest.mark.parametrize("name", GATES)
def test_gates_of_what_is_not_finite(name: str, dtype: torch.dtype) -> None:
    special = torch.tensor(SPECIAL, device=DEVICE).to(dtype)
    gate, up = special.repeat_interleave(len(special)), special.repeat(len(special))
    expected, found = ACT2FN[name](gate) * up, BODY.gate(GATES[name], gate, up)
    assert torch.equal(found.isnan(), expected.isnan())
    torch.testing.assert_close(found, expected, equal_nan=True)
    zeros = expected == 0
    assert torch.equal(found.signbit()[zeros], expected.signbit()[zeros])


@QUIET
@DTYPES
def test_rotation_of_what_is_not_finite(dtype: torch.dtype) -> None:
    special = torch.tensor(SPECIAL, device=DEVICE).to(dtype)
    pairs = torch.cartesian_prod(special, special)
    heads = pairs.t().reshape(1, 1, -1)  # each with each, in one head
    cos, sin = tables(1, heads.shape[-1], dtype)
    cos[:, ::3], sin[:, 1::3] = 0.0, -0.0
    expected = apply_rotary_pos_emb(heads[None], heads[None], cos[None], sin[None])[0][0]
    assert_same_bits(BODY.rotate(heads, heads, cos, sin)[0], expected)


@QUIET
@DTYPES
@pytest.mark.parametrize("width", [24, 577])
def test_bits_do_not_depend_on_company(width: int, dtype: torch.dtype) -> None:
    rows, others = draw(21, width, dtype=dtype), draw(21, width, dtype=dtype, seed=1)
    weight = draw(width, dtype=dtype, seed=2)
    for compute in (
        lambda a, b: BODY.norm(NormForm.ROUNDED, a, weight, EPS),
        lambda a, b: BODY.add_norm(NormForm.ONCE, a, b, weight, EPS)[1],
        lambda a, b: BODY.gate(GateForm.SILU, a, b),
        lambda a, b: BODY.gate(GateForm.GELU_TANH, a, b),
    ):
        assert_alone_as_together(compute, rows, others)


@DTYPES
def test_a_token_is_turned_alike_in_any_company(dtype: torch.dtype) -> None:
    q, (cos, sin) = draw(5, 40, 16, dtype=dtype), tables(40, 16, dtype)
    whole, _ = BODY.rotate(q, q, cos, sin)
    for row in (0, 17, 39):
        own = slice(row, row + 1)
        alone, _ = BODY.rotate(q[:, own], q[:2, own], cos[own], sin[own])
        assert torch.equal(alone, whole[:, own])


def assert_alone_as_together(
    compute: Callable[[Tensor, Tensor], Tensor], rows: Tensor, others: Tensor
) -> None:
    whole = compute(rows, others)
    for first, last in ((0, 1), (17, 18), (3, 21)):
        assert torch.equal(compute(rows[first:last], others[first:last]), whole[first:last])


def test_the_twin_is_what_transformers_computes() -> None:
    """Bit for bit: what differs from it errs."""
    twin = EagerBody()
    for dtype in (torch.float32, torch.bfloat16):
        rows = draw(7, 64, dtype=dtype)
        for name in NORMS:
            module, form = norm_of(name, 64, dtype)
            with torch.inference_mode():
                assert torch.equal(twin.norm(form, rows, module.weight, EPS), module(rows))
        for name, gate in GATES.items():
            assert torch.equal(
                twin.gate(gate, rows, rows.flip(0)), ACT2FN[name](rows) * rows.flip(0)
            )
        heads, (cos, sin) = draw(3, 7, 64, dtype=dtype), tables(7, 64, dtype)
        expected, _ = apply_rotary_pos_emb(heads[None], heads[None], cos[None], sin[None])
        assert torch.equal(twin.rotate(heads, heads, cos, sin)[1], expected[0])


def test_what_does_not_fit_is_refused() -> None:
    rows = draw(2, 8, dtype=torch.float32)
    with pytest.raises(ValueError, match="do not fit"):
        BODY.norm(NormForm.ONCE, rows, rows[0, :1], EPS)
    with pytest.raises(ValueError, match="do not fit"):
        BODY.add_norm(NormForm.ONCE, rows, rows[:1], rows[0], EPS)
    wide = torch.zeros(1, rms_norm.WIDEST + 1, device=DEVICE)
    with pytest.raises(ValueError, match=str(rms_norm.WIDEST)):
        BODY.norm(NormForm.ONCE, wide, wide[0], EPS)
    with pytest.raises(ValueError, match="a gate"):
        BODY.gate(GateForm.SILU, rows, rows[:1])
    with pytest.raises(ValueError, match="a gate"):
        BODY.gate(GateForm.SILU, rows, rows.bfloat16())
    heads, (cos, sin) = draw(2, 3, 8, dtype=torch.float32), tables(3, 8, torch.float32)
    with pytest.raises(ValueError, match="not turned"):
        BODY.rotate(heads[:, :2], heads, cos, sin)
    with pytest.raises(ValueError, match="are not one"):
        BODY.rotate(heads, heads.bfloat16(), cos, sin)
    with pytest.raises(ValueError, match=str(rotary.WIDEST)):
        BODY.rotate(heads[..., :7], heads[..., :7], cos[:, :7], sin[:, :7])
