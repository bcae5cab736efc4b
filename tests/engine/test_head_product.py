"""Which product makes the logits, and that it is the one that was asked for."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from scoring_service.engine.head import LinearHead
from scoring_service.engine.head_product import (
    PackedProduct,
    PlainProduct,
    WideCpuProduct,
)
from scoring_service.engine.loader import LoadedModel
from scoring_service.kernels.cpu.ops import load_cpu_kernels
from tests.engine.loading import load_model
from tests.engine.small_models import ARCHITECTURES, save_model

BY_NAME = {architecture.name: architecture for architecture in ARCHITECTURES}


@pytest.fixture(autouse=True, scope="module")
def _bf16_products() -> None:
    if not load_cpu_kernels().multiplies_wide(torch.empty(1, 2, dtype=torch.bfloat16)):
        pytest.skip("no bf16 products on this machine")


def head_of(loaded: LoadedModel) -> LinearHead:
    head = loaded.model.head
    assert isinstance(head, LinearHead)
    return head


def error_of(head: LinearHead, weight_V_H: torch.Tensor) -> float:
    states = torch.randn(40, weight_V_H.shape[1], generator=torch.Generator().manual_seed(1))
    states = states.to(weight_V_H.dtype)
    exact = states.double() @ weight_V_H.double().t()
    return (head.logits(states) - exact).abs().max().item()


@pytest.mark.parametrize(
    ("dtype", "settings", "kind", "copies"),
    [
        ("bfloat16", {}, WideCpuProduct, 2),
        ("bfloat16", {"cpu_kernels": "off"}, PlainProduct, 4),
        ("bfloat16", {"path": "plain"}, PlainProduct, 4),
        ("bfloat16", {"head_dtype": "bfloat16"}, PackedProduct, 2),
        ("float32", {}, PlainProduct, 0),
        ("float16", {}, PlainProduct, 4),
    ],
)
def test_the_product_of_a_model(
    tmp_path: Path, dtype: str, settings: dict[str, str], kind: type, copies: int
) -> None:
    folder = save_model(BY_NAME["llama"], tmp_path)
    loaded = load_model(folder, dtype=dtype, **settings)
    head = head_of(loaded)
    assert type(head.matmul) is kind
    weights = loaded.model.weights
    assert weights is not None
    weight_V_H = weights.tensors["lm_head.weight"]
    assert head.copied_bytes == copies * weight_V_H.numel()
    error = error_of(head, weight_V_H)
    assert (error < 1e-5) == (head.dtype == torch.float32)


def test_another_weight_of_a_version_is_packed_where_the_last_one_was(tmp_path: Path) -> None:
    """With a bias, which comes beside it, in the type of the logits."""
    loaded = load_model(save_model(BY_NAME["phi"], tmp_path), dtype="bfloat16")
    head, weights, slots = head_of(loaded), loaded.model.weights, loaded.model.slots
    assert weights is not None
    assert slots is not None
    assert type(head.matmul) is WideCpuProduct
    tensors = {name: tensor.clone() for name, tensor in weights.tensors.items()}
    tensors["lm_head.weight"] *= -2
    tensors["lm_head.bias"] -= 1
    memory = head.prepared.data_ptr()
    slots.reclaim(weights)
    other = slots.head_of(tensors)
    assert isinstance(other, LinearHead)
    assert other.prepared.data_ptr() == memory
    states = torch.randn(5, tensors["lm_head.weight"].shape[1]).bfloat16()
    exact = states.double() @ tensors["lm_head.weight"].double().t()
    exact += tensors["lm_head.bias"].double()
    assert (other.logits(states) - exact).abs().max().item() < 1e-5
