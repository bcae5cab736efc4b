"""Products of bf16 factors with fp32 sums: the float32 head of a bf16 body."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from scoring_service.kernels.cpu.ops import CpuKernels, load_cpu_kernels

ROWS = (1, 3, 15, 16, 63, 64, 65, 127, 255)


@pytest.fixture(scope="module")
def kernels() -> CpuKernels:
    found = load_cpu_kernels()
    if not found.multiplies_wide(torch.empty(1, 2, dtype=torch.bfloat16)):
        pytest.skip("no bf16 products on this machine")
    return found


def factors(rows: int, columns: int, width: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(rows + columns + width)
    states = torch.randn(rows, width, generator=generator).bfloat16()
    return states, (torch.randn(columns, width, generator=generator) * 3 / width**0.5).bfloat16()


@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize(
    ("columns", "width"),
    [(1, 2), (17, 64), (63, 576), (64, 30), (65, 576), (1000, 34), (1000, 4096)],
)
def test_shapes(kernels: CpuKernels, rows: int, columns: int, width: int) -> None:
    states, weight = factors(rows, columns, width)
    found = kernels.linear(states, kernels.pack_linear(weight), columns)
    exact = states.double() @ weight.double().t()
    eager = (states.float() @ weight.float().t() - exact).abs().max().item()
    assert found.dtype == torch.float32
    assert found.shape == (rows, columns)
    assert (found - exact).abs().max().item() <= eager + 1e-5


def test_a_large_vocabulary(kernels: CpuKernels) -> None:
    states, weight = factors(5, 151_936, 64)
    found = kernels.linear(states, kernels.pack_linear(weight), len(weight))
    exact = states.double() @ weight.double().t()
    assert (found - exact).abs().max().item() <= 1e-5


@pytest.mark.parametrize("width", [64, 576])
def test_a_row_has_the_same_bits_in_any_company(kernels: CpuKernels, width: int) -> None:
    states, weight = factors(200, 1000, width)
    packed = kernels.pack_linear(weight)
    whole = kernels.linear(states, packed, 1000)
    for rows in ROWS[:-1]:
        for first in (0, 37):
            part = kernels.linear(states[first : first + rows], packed, 1000)
            assert torch.equal(part, whole[first : first + rows])


def test_rows_that_lie_apart(kernels: CpuKernels) -> None:
    states, weight = factors(64, 100, 64)
    packed = kernels.pack_linear(weight)
    apart = states.t().contiguous().t()[::2]
    assert not apart.is_contiguous()
    found = kernels.linear(apart, packed, 100)
    assert torch.equal(found, kernels.linear(states[::2].clone(), packed, 100))
    turned = weight.t().contiguous().t()
    assert torch.equal(kernels.pack_linear(turned), packed)


def test_another_weight_takes_the_memory_of_the_last(kernels: CpuKernels) -> None:
    states, weight = factors(4, 130, 64)
    memory = kernels.pack_linear(torch.full_like(weight, torch.nan))
    packed = kernels.pack_linear(weight, memory)
    assert packed is memory
    assert torch.equal(packed, kernels.pack_linear(weight))
    assert kernels.linear(states, packed, 130).isfinite().all()


def test_broken_rows_stay_alone(kernels: CpuKernels) -> None:
    states, weight = factors(5, 100, 64)
    packed = kernels.pack_linear(weight)
    clean = kernels.linear(states, packed, 100)
    states[2, 7] = torch.nan
    found = kernels.linear(states, packed, 100)
    assert found[2].isnan().all()
    rest = [0, 1, 3, 4]
    assert torch.equal(found[rest], clean[rest])


def test_what_it_does_not_take(kernels: CpuKernels) -> None:
    states, weight = factors(4, 130, 64)
    packed = kernels.pack_linear(weight)
    assert not kernels.multiplies_wide(weight.float())
    assert not kernels.multiplies_wide(weight.half())
    assert not kernels.multiplies_wide(weight[:, :63])
    with pytest.raises(RuntimeError, match="bf16 expected"):
        kernels.linear(states.float(), packed, 130)
    with pytest.raises(RuntimeError, match="a weight of this width expected"):
        kernels.linear(states[:, :62], packed, 130)
    with pytest.raises(RuntimeError, match="a weight of this width expected"):
        kernels.linear(states, packed, 300)
    with pytest.raises(RuntimeError, match="dense bf16 expected"):
        kernels.pack_linear(weight.float())
    with pytest.raises(RuntimeError, match="an even width expected"):
        kernels.pack_linear(weight[:, :63])
    with pytest.raises(RuntimeError, match="as many dense bf16"):
        kernels.pack_linear(weight, packed[:1])
