"""Which product makes the logits, and that it is the one that was asked for."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from scoring_service.engine.head import head as head_module
from scoring_service.engine.head.head import LinearHead
from scoring_service.engine.head.product import (
    PackedProduct,
    PlainProduct,
    WideCpuProduct,
    WideCudaProduct,
)
from scoring_service.engine.loading.loader import LoadedModel
from scoring_service.models import tiny_model_path
from tests.engine.loading import load_model
from tests.engine.small_models import ARCHITECTURES, save_model

pytestmark = pytest.mark.usefixtures("bf16_products")

BY_NAME = {architecture.name: architecture for architecture in ARCHITECTURES}


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


def by_torch(
    _product: Any, states_T_H: torch.Tensor, prepared: torch.Tensor, bias_V: torch.Tensor | None
) -> torch.Tensor:
    """What a GPU is to make of half-precision factors."""
    return torch.nn.functional.linear(states_T_H.float(), prepared.float(), bias_V)


def off_in_tall_products(*arguments: Any) -> torch.Tensor:
    logits_T_V = by_torch(*arguments)
    logits_T_V[64:] *= 1.01
    return logits_T_V


def refused(*_arguments: Any) -> torch.Tensor:
    raise RuntimeError("no algorithm was found\nfor this device")


@pytest.mark.parametrize(
    ("multiply", "reason"),
    [
        (by_torch, ""),
        (off_in_tall_products, "products of the head differ from torch's"),
        (refused, "no algorithm was found"),
    ],
)
@pytest.mark.parametrize("path", ["auto", "plain"])
def test_the_product_of_a_gpu_is_tried_at_load(
    path: str,
    multiply: Callable[..., torch.Tensor],
    reason: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Where it fails the weight is copied to fp32, and both paths answer with that."""
    settings = {"cpu_kernels": "off", "path": path}
    expected = load_model(tiny_model_path(), **settings)
    own = head_module.choose_product

    def as_on_a_gpu(weight_V_H: torch.Tensor, dtype: torch.dtype, kernels: Any) -> Any:
        wide = dtype == torch.float32 != weight_V_H.dtype
        return WideCudaProduct() if wide else own(weight_V_H, dtype, kernels)

    monkeypatch.setattr(head_module, "choose_product", as_on_a_gpu)
    monkeypatch.setattr(WideCudaProduct, "multiply", multiply)
    loaded = load_model(tiny_model_path(), **settings)
    head = head_of(loaded)
    told = f"; with a copy of the head's weight in fp32: {reason}"
    assert type(head.matmul) is (PlainProduct if reason else WideCudaProduct)
    assert (told in loaded.info.path_reason) == bool(reason)
    generator = torch.Generator().manual_seed(3)
    states = torch.randn(9, head.prepared.shape[1], generator=generator).bfloat16()
    torch.testing.assert_close(head.logits(states), head_of(expected).logits(states))
