"""The C++ norm, gate and rotation against float64, rounded where transformers rounds."""

from __future__ import annotations

import pytest
import torch

from scoring_service.kernels.cpu.ops import CpuKernels, load_cpu_kernels

DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
WIDTHS = pytest.mark.parametrize("width", [1, 8, 33, 64, 576, 4096])


@pytest.fixture(scope="module")
def kernels() -> CpuKernels:
    return load_cpu_kernels()


def test_a_draw_without_rows(kernels: CpuKernels) -> None:
    none = torch.empty(0)
    sums = none, none.double()
    drawn = kernels.draw(torch.empty(0, 40), none, sums, [], [], [], [], [])
    assert [column.tolist() for column in drawn] == [[], [], []]


def draw(*sizes: int, dtype: torch.dtype, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return (3 * torch.randn(*sizes, generator=generator)).to(dtype)


def assert_rounded(found: torch.Tensor, exact: torch.Tensor) -> None:
    """Within a unit in the last place of the type, and nearly always the nearest number."""
    eps = torch.finfo(found.dtype).eps
    error = (found.double() - exact).abs()
    assert (error <= 1.01 * eps * exact.abs() + 1e-30).all()
    if found.dtype == torch.bfloat16:
        assert (found == exact.to(torch.bfloat16)).float().mean() > 0.99


@DTYPES
@WIDTHS
@pytest.mark.parametrize("rows", [1, 5, 300])
def test_rms_norm(kernels: CpuKernels, dtype: torch.dtype, width: int, rows: int) -> None:
    x, weight = draw(rows, width, dtype=dtype), draw(width, dtype=dtype, seed=1)
    exact = x.double() / torch.sqrt(x.double().pow(2).mean(-1, keepdim=True) + 1e-5)
    once = kernels.rms_norm(x, weight, 1e-5, offset=True)
    if dtype == torch.float32:
        torch.testing.assert_close(once.double(), exact * (1 + weight.double()), rtol=2e-6, atol=0)
        found = kernels.rms_norm(x, weight, 1e-5, offset=False)
        torch.testing.assert_close(found.double(), exact * weight.double(), rtol=2e-6, atol=0)
        return
    # fp32 adds 1 to the weight: a weight near -1 loses digits, as it does in transformers.
    assert_rounded(once, exact * (1 + weight.float()).double())
    twice = kernels.rms_norm(x, weight, 1e-5, offset=False)
    torch.testing.assert_close(
        twice.double(), exact.to(dtype).double() * weight.double(), rtol=3 * 2**-8, atol=0
    )
    assert (twice == exact.to(dtype) * weight).float().mean() > 0.99


@DTYPES
@pytest.mark.parametrize("n", [1, 31, 512, 513, 40_000])
def test_silu_mul(kernels: CpuKernels, dtype: torch.dtype, n: int) -> None:
    gate, up = draw(n, dtype=dtype), draw(n, dtype=dtype, seed=1)
    silu = gate.double() * torch.sigmoid(gate.double())
    expected = silu.to(dtype).double() * up.double()
    found = kernels.silu_mul(gate, up)
    tolerance = 3 * torch.finfo(dtype).eps
    torch.testing.assert_close(found.double(), expected, rtol=tolerance, atol=1e-30)


@DTYPES
@pytest.mark.parametrize(("heads", "rows", "width"), [(1, 1, 8), (9, 33, 64), (3, 200, 128)])
def test_rotate(kernels: CpuKernels, dtype: torch.dtype, heads: int, rows: int, width: int) -> None:
    x = draw(rows, heads, width, dtype=dtype).transpose(0, 1)
    angles = 6.3 * torch.rand(rows, width // 2).repeat(1, 2)
    cos, sin = angles.cos().to(dtype), angles.sin().to(dtype)
    half = width // 2
    turned = torch.cat([-x[..., half:], x[..., :half]], dim=-1)
    # transformers' own expression, each operation rounded to the type
    assert torch.equal(kernels.rotate(x, cos, sin), x * cos + turned * sin)


@DTYPES
def test_rows_do_not_depend_on_company(kernels: CpuKernels, dtype: torch.dtype) -> None:
    x, weight = draw(301, 577, dtype=dtype), draw(577, dtype=dtype, seed=1)
    whole = kernels.rms_norm(x, weight, 1e-6, offset=False)
    for row in (0, 150, 300):
        alone = kernels.rms_norm(x[row : row + 1], weight, 1e-6, offset=False)
        assert torch.equal(alone[0], whole[row])
