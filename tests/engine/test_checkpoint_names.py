"""Names under which a checkpoint has a model's tensors, by what transformers itself saves."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import (
    AutoModelForCausalLM,
    LlamaConfig,
    MixtralConfig,
    PreTrainedConfig,
    Qwen3MoeConfig,
)

from scoring_service.engine.files import checkpoint_names
from scoring_service.engine.files.checkpoint_names import with_checkpoint_names
from scoring_service.engine.weights.tensor_specs import tensor_specs
from scoring_service.types import TensorSpec

SIZES: dict[str, Any] = {
    "hidden_size": 8,
    "intermediate_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "vocab_size": 32,
    "tie_word_embeddings": True,
}


def named(config: PreTrainedConfig) -> tuple[Any, tuple[TensorSpec, ...]]:
    torch.manual_seed(0)
    network = AutoModelForCausalLM.from_config(config)
    return network, with_checkpoint_names(network, tensor_specs(network.state_dict()), pytest.fail)


def joined(spec: TensorSpec, saved: dict[str, torch.Tensor]) -> torch.Tensor:
    """A tensor from what a checkpoint has of it, as the contract says."""
    names = list(spec.checkpoint_names) or [spec.name]
    if any("*" in name for name in names):
        names = [name.replace("*", str(i)) for i in range(spec.shape[0]) for name in names]
    return torch.cat([saved[name].flatten() for name in names]).reshape(spec.shape)


@pytest.mark.parametrize(
    "config",
    [
        Qwen3MoeConfig(
            **SIZES, num_experts=12, moe_intermediate_size=8, num_experts_per_tok=1, head_dim=4
        ),
        # 2 * intermediate_size == hidden_size: shapes alone would not tell a transposition.
        MixtralConfig(**{**SIZES, "intermediate_size": 4}, num_local_experts=3),
        LlamaConfig(**SIZES),
    ],
    ids=lambda config: str(config.model_type),
)
def test_what_is_saved_makes_the_tensors(config: PreTrainedConfig, tmp_path: Path) -> None:
    network, specs = named(config)
    network.save_pretrained(tmp_path)
    saved = load_file(tmp_path / "model.safetensors")
    state = network.state_dict()
    for spec in specs:
        if not spec.tied_to and spec.name != "lm_head.weight":
            assert torch.equal(joined(spec, saved), state[spec.name]), spec.name
    renamed = [spec.name for spec in specs if spec.checkpoint_names]
    assert len(renamed) == {"qwen3_moe": 4, "mixtral": 6, "llama": 0}[config.model_type]
    # The same of a model that was loaded from those files.
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert with_checkpoint_names(loaded, tensor_specs(loaded.state_dict()), pytest.fail) == specs


@pytest.mark.parametrize("order", ["transposed", "interleaved", "impossible"])
def test_tensors_in_another_order_of_elements_have_no_other_name(
    order: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """There, a checkpoint's bytes are not the model's."""

    def revert(_network: Any, state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        ((_, tensor),) = state.items()
        if order == "transposed":
            return {f"experts.{i}.w": tensor[i].T for i in range(len(tensor))}
        if order == "interleaved":
            return {"gate": tensor[:, ::2], "up": tensor[:, 1::2]}
        raise KeyError("a tensor that belongs to it")

    monkeypatch.setattr(checkpoint_names, "revert_weight_conversion", revert)
    specs = tuple(TensorSpec(name, "float32", (2, 8, 8)) for name in ("experts", "others"))
    told: list[str] = []
    assert with_checkpoint_names(None, specs, told.append) == specs
    assert len(told) == (order == "impossible")
    for line in told:  # once, however many
        assert line.startswith("2 of 2 tensors have no name but the model's own")
        assert line.endswith("experts: KeyError: 'a tensor that belongs to it'")
