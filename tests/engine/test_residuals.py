"""Which layers let their products add the residuals, and what that changes: one rounding."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from scoring_service.engine.fused.prepacked import adding, pack_linears
from scoring_service.engine.fused.residuals import add_fused
from scoring_service.engine.fused.trials import Trials
from scoring_service.kernels.cpu.body import CpuBody
from scoring_service.kernels.cpu.ops import load_cpu_kernels
from tests.engine.small_models import ARCHITECTURES, save_model

BY_NAME = {a.name: a for a in ARCHITECTURES}
NEEDS_PACKING = pytest.mark.skipif(
    not torch.ops.mkldnn._is_mkldnn_bf16_supported(), reason="no bf16 products on this machine"
)


def network(name: str, folder: Path) -> Any:
    made = AutoModelForCausalLM.from_pretrained(
        save_model(BY_NAME[name], folder), dtype=torch.bfloat16
    )
    pack_linears(made)
    return made


def add_in_products(layer: Any) -> Any:
    trials = Trials(CpuBody(load_cpu_kernels()))
    return add_fused(layer, trials, torch.bfloat16, torch.bfloat16)


@NEEDS_PACKING
@pytest.mark.parametrize(
    ("name", "fused"),
    [
        ("llama", True),
        ("mistral", True),
        ("qwen3", True),
        ("granite", False),  # scales what it adds
        ("gemma3", False),  # norms after the products too
        ("cohere", False),  # attention and MLP side by side
        ("olmo2", False),  # norms after the products
        ("gpt2", False),
    ],
)
def test_which_layers(name: str, fused: bool, tmp_path: Path) -> None:
    layers = [
        module
        for module in network(name, tmp_path).modules()
        if hasattr(module, "mlp") and not hasattr(module, "layers")
    ]
    assert layers
    assert {add_in_products(layer) is not None for layer in layers} == {fused}


@NEEDS_PACKING
def test_a_sum_is_rounded_once(tmp_path: Path) -> None:
    """Against float64: at least as near as a product rounded before the sum."""
    layer = network("llama", tmp_path).model.layers[0].mlp.down_proj
    generator = torch.Generator().manual_seed(1)
    rows = torch.randn(40, layer.in_features, generator=generator).bfloat16()
    residual = torch.randn(40, layer.out_features, generator=generator).bfloat16()
    with torch.inference_mode():
        twice = residual + layer(rows)
        with adding(layer, residual):
            once = layer(rows)
        exact = residual.double() + rows.double() @ layer.weight.double().T
        assert torch.equal(layer(rows), layer(rows))  # nothing is left behind
    assert (once - exact).abs().mean() <= (twice - exact).abs().mean()
    assert ((once - exact).abs() <= 2**-8 * exact.abs() + 1e-6).all()


@NEEDS_PACKING
def test_a_residual_that_nobody_added_is_a_bug(tmp_path: Path) -> None:
    layer = network("llama", tmp_path).model.layers[0].mlp.down_proj
    with pytest.raises(RuntimeError), adding(layer, torch.zeros(1)):
        pass
    rows = torch.ones(2, layer.in_features, dtype=torch.bfloat16)
    with torch.inference_mode():
        expected = layer(rows)
        with pytest.raises(KeyError), adding(layer, torch.ones(2, layer.out_features)):
            raise KeyError
        assert torch.equal(layer(rows), expected)


@NEEDS_PACKING
def test_a_layer_that_only_looks_alike(tmp_path: Path) -> None:
    """The same parts, put together in another way."""
    layer = network("llama", tmp_path).model.layers[0]

    class Odd(type(layer)):  # type: ignore[misc]
        def forward(self, hidden_states: Tensor, **asked: Any) -> Tensor:
            mixed, _ = self.self_attn(hidden_states=self.input_layernorm(hidden_states), **asked)
            found: Tensor = mixed + self.mlp(self.post_attention_layernorm(hidden_states + mixed))
            return found

    class Deaf(type(layer)):  # type: ignore[misc]
        def forward(self, hidden_states: Tensor, **asked: Any) -> Tensor:
            asked.pop("packing")
            found: Tensor = type(layer).__mro__[1].forward(self, hidden_states, **asked)
            return found

    own = type(layer)
    assert add_in_products(layer) is not None
    for other in (Odd, Deaf):
        layer.__class__ = other
        assert add_in_products(layer) is None
    layer.__class__ = own
