"""Counts of the plan against models that transformers makes, and what the engine allocates."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch.utils.flop_counter import FlopCounterMode

from scoring_service.model_shape import DEFAULTS, ModelShape, UnknownFamilyError, model_shape
from scoring_service.models import tiny_model_path
from scoring_service.plan.estimate import step_limits
from scoring_service.plan.hardware import PRESETS
from scoring_service.plan.traffic import Traffic
from scoring_service.types import PAGE_TOKENS
from tests.engine.loading import load_model
from tests.engine.small_models import ARCHITECTURES, save_model

_MOE = {"num_experts": 128, "num_experts_per_tok": 8, "moe_intermediate_size": 768}

# Full-size models by the numbers of their configs, and what their makers say they have.
FULL: dict[str, tuple[str, dict[str, Any], float]] = {
    "llama-3.1-8b": (
        "LlamaConfig",
        {"vocab_size": 128_256, "hidden_size": 4096, "intermediate_size": 14_336,
         "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8},
        8.03e9,
    ),
    "qwen2.5-0.5b": (
        "Qwen2Config",
        {"vocab_size": 151_936, "hidden_size": 896, "intermediate_size": 4864,
         "num_hidden_layers": 24, "num_attention_heads": 14, "num_key_value_heads": 2,
         "tie_word_embeddings": True},
        0.494e9,
    ),
    "qwen3-8b": (
        "Qwen3Config",
        {"vocab_size": 151_936, "hidden_size": 4096, "intermediate_size": 12_288, "head_dim": 128,
         "num_hidden_layers": 36, "num_attention_heads": 32, "num_key_value_heads": 8},
        8.19e9,
    ),
    "qwen3-30b-a3b": (
        "Qwen3MoeConfig",
        {"vocab_size": 151_936, "hidden_size": 2048, "intermediate_size": 6144, "head_dim": 128,
         "num_hidden_layers": 48, "num_attention_heads": 32, "num_key_value_heads": 4, **_MOE},
        30.5e9,
    ),
    "gemma-3-1b": (
        "Gemma3TextConfig",
        {"vocab_size": 262_144, "hidden_size": 1152, "intermediate_size": 6912, "head_dim": 256,
         "num_hidden_layers": 26, "num_attention_heads": 4, "num_key_value_heads": 1},
        1.0e9,
    ),
    "gpt2": ("GPT2Config", {}, 0.124e9),
    "mixtral-8x7b": (
        "MixtralConfig",
        {"vocab_size": 32_000, "hidden_size": 4096, "intermediate_size": 14_336,
         "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8},
        46.7e9,
    ),
    "deepseek-v3": ("DeepseekV3Config", {}, 671e9),
    "phi-3-mini": ("Phi3Config", {}, 3.82e9),
    "olmo-2-7b": ("Olmo2Config", {"vocab_size": 100_352}, 7.30e9),
    "granite-3.1-8b": (
        "GraniteConfig",
        {"vocab_size": 49_155, "hidden_size": 4096, "intermediate_size": 12_800,
         "num_hidden_layers": 40, "num_attention_heads": 32, "num_key_value_heads": 8,
         "tie_word_embeddings": True},
        8.17e9,
    ),
    "command-r": ("CohereConfig", {}, 35e9),
    "gpt-neox-20b": ("GPTNeoXConfig", {}, 20.6e9),
    "phi-1.5": ("PhiConfig", {}, 1.42e9),
    "gpt-oss-120b": ("GptOssConfig", {}, 116.8e9),
}  # fmt: skip


def shape_of(config: Any) -> ModelShape:
    return model_shape(json.loads(config.to_json_string(use_diff=False)))


@pytest.mark.parametrize("name", FULL)
def test_parameters_are_those_of_the_real_model(name: str) -> None:
    class_name, settings, published = FULL[name]
    config = getattr(transformers, class_name)(**settings)
    with torch.device("meta"):
        network = transformers.AutoModelForCausalLM.from_config(config)
    counted = sum(parameter.numel() for parameter in network.parameters())
    shape = shape_of(config)
    assert shape.parameters == counted
    assert shape.parameters == pytest.approx(published, rel=0.006)


@pytest.mark.parametrize(
    ("class_name", "settings"),
    [
        ("PhiConfig", {"qk_layernorm": True, "num_key_value_heads": 8}),
        ("CohereConfig", {"use_qk_norm": True, "num_key_value_heads": 8}),
        ("CohereConfig", {"attention_bias": True}),
        ("Olmo2Config", {"attention_bias": True, "num_key_value_heads": 8}),
        ("GraniteConfig", {"attention_bias": True, "mlp_bias": True}),
        ("GPTNeoXConfig", {"attention_bias": False}),
        ("GptOssConfig", {"attention_bias": False}),
    ],
)
def test_parameters_that_a_family_may_have_or_not(
    class_name: str, settings: dict[str, Any]
) -> None:
    config = getattr(transformers, class_name)(**settings, num_hidden_layers=2)
    with torch.device("meta"):
        network = transformers.AutoModelForCausalLM.from_config(config)
    counted = sum(parameter.numel() for parameter in network.parameters())
    assert shape_of(config).parameters == counted


@pytest.mark.parametrize("family", DEFAULTS)
def test_defaults_are_those_of_transformers(family: str) -> None:
    config = transformers.AutoConfig.for_model(family)
    assert {name: getattr(config, name) for name in DEFAULTS[family]} == DEFAULTS[family]


def test_a_multimodal_config_that_leaves_out_what_is_usual() -> None:
    """As google/gemma-3-4b-it has it: nearly nothing; 3.88e9 parameters, the vision tower aside."""
    text = {
        "hidden_size": 2560, "intermediate_size": 10_240, "model_type": "gemma3_text",
        "num_hidden_layers": 34, "sliding_window": 1024,
    }  # fmt: skip
    shape = model_shape({"model_type": "gemma3", "text_config": text, "vision_config": {}})
    with torch.device("meta"):
        network = transformers.AutoModelForCausalLM.from_config(
            transformers.Gemma3TextConfig(**text)
        )
    assert shape.parameters == sum(parameter.numel() for parameter in network.parameters())
    assert shape.parameters == pytest.approx(3.88e9, rel=0.006)
    assert (shape.vocab_size, shape.max_positions) == (262_208, 131_072)


SMALL = [
    architecture
    for architecture in ARCHITECTURES
    if architecture.name
    in (
        "llama",
        "qwen2",
        "qwen3",
        "gemma2",
        "gemma3",
        "gpt2",
        "mixtral",
        "qwen3-moe",
        "deepseek-v3",
        "phi3",
        "olmo2",
        "granite",
        "cohere",
        "gpt-neox",
        "phi",
        "gpt-oss",
    )
]


@pytest.mark.parametrize("architecture", SMALL, ids=str)
def test_flops_are_those_that_torch_counts(architecture: Any) -> None:
    config = getattr(transformers, architecture.config)(**architecture.settings)
    network = transformers.AutoModelForCausalLM.from_config(
        config, attn_implementation="eager", experts_implementation="eager"
    )
    tokens = 24
    ids = torch.randint(0, config.vocab_size, (1, tokens))
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        network(input_ids=ids, use_cache=False)
    shape = shape_of(config)
    # Eager attention computes all pairs, masked ones included.
    expected = tokens * 2 * (shape.body_parameters + shape.head_parameters)
    expected += tokens * tokens * shape.pair_flops
    # Besides, rotary angles are a matrix product: head_dim / 2 FLOPs of 2 a token, once or twice.
    assert counter.get_total_flops() == pytest.approx(expected, rel=0.004)


@pytest.mark.parametrize("architecture", SMALL, ids=str)
def test_pages_are_as_large_as_the_engine_makes_them(architecture: Any, tmp_path: Path) -> None:
    folder = save_model(architecture, tmp_path)
    loaded = load_model(folder, memory_utilization=0.01)
    shape = model_shape(json.loads((folder / "config.json").read_text()))
    assert loaded.packed is not None
    pool = loaded.packed.pool
    held = sum(tensor.nbytes for tensor in (*pool.keys, *pool.values))
    assert held == pool.pages * PAGE_TOKENS * shape.kv_width * 4
    # What a step takes beside them is predicted from the same widths, with a compiler or without.
    planned = step_limits(shape, PRESETS["cpu-2-cores"], Traffic("score", 16, 16, 1, 0, 1.0), 4)
    found = loaded.packed.limits.shape
    compiled = found.compiled_attention
    assert found == replace(planned.shape, compiled_attention=compiled, compiled_head=compiled)


def test_the_packaged_model_is_what_its_card_says() -> None:
    shape = model_shape(json.loads((tiny_model_path() / "config.json").read_text()))
    assert shape.parameters == 1_373_600


def test_what_nobody_has_counted_is_refused() -> None:
    with pytest.raises(
        UnknownFamilyError, match=r"'mamba'.*llama.*qwen3.*a copy of its config.json"
    ):
        model_shape({"model_type": "mamba"})
