"""A residual stream in float32 under a bfloat16 body: what it is, what it gains, who cannot."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from transformers import (
    AutoModelForCausalLM,
    BloomConfig,
    BloomForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
)

from scoring_service.engine.fused.wide_residuals import choose_residuals
from scoring_service.engine.loading.loader import LoadedModel
from scoring_service.errors import ConfigurationError
from tests.engine import plain
from tests.engine.loading import load_model
from tests.engine.scoring import groups, score
from tests.engine.small_models import ARCHITECTURES, VOCAB, save_model

BY_NAME = {a.name: a for a in ARCHITECTURES}


@pytest.fixture(scope="module")
def deep(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Thirty layers: every one of them adds to the stream."""
    torch.manual_seed(3)
    config = LlamaConfig(
        vocab_size=VOCAB,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=30,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=128,
        initializer_range=0.08,
        tie_word_embeddings=True,
    )
    folder = tmp_path_factory.mktemp("deep")
    LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(folder)
    return folder


def pairs() -> list[tuple[list[int], list[list[int]]]]:
    rng = np.random.default_rng(5)
    return [
        (rng.integers(3, VOCAB, 9).tolist(), [rng.integers(3, VOCAB, 100).tolist()])
        for _ in range(6)
    ]


def realised(network: Any) -> np.ndarray:
    """Log-probs of `pairs` by a plain forward."""
    rows = [
        plain.log_softmax(plain.row_logits(network, prompt, ids))[np.arange(len(ids)), ids]
        for prompt, (ids,) in pairs()
    ]
    return np.concatenate(rows)


def scored(loaded: LoadedModel) -> np.ndarray:
    answer = score(loaded, groups(pairs()))
    return np.concatenate([item.logprobs for item in answer.items.values()])


def in_mixed_precision(network: Any) -> np.ndarray:
    """As a trainer has it: weights in float32, products in bfloat16 by autocast."""
    with torch.autocast("cpu", dtype=torch.bfloat16):
        return realised(network)


@pytest.mark.parametrize("ways", [{}, {"cpu_kernels": "off"}, {"path": "plain"}], ids=str)
def test_it_is_nearer_to_float32_and_to_mixed_precision(deep: Path, ways: dict[str, str]) -> None:
    network = plain.load(deep, torch.bfloat16).float()
    exact, mixed = realised(network), in_mixed_precision(network)
    narrow = scored(load_model(deep, **ways))
    loaded = load_model(deep, residual_dtype="float32", **ways)
    wide = scored(loaded)
    assert (loaded.info.dtype, loaded.info.residual_dtype) == ("bfloat16", "float32")
    assert loaded.info.packed == ("path" not in ways)
    assert np.abs(wide - exact).mean() < 0.7 * np.abs(narrow - exact).mean()
    assert np.abs(wide - mixed).mean() < 0.7 * np.abs(narrow - mixed).mean()


@pytest.mark.parametrize(
    "name",
    ["llama", "gemma3", "granite", "gpt2", "gpt-neox", "cohere", "qwen3-moe", "deepseek-v3"],
)
def test_layers_add_in_float32_and_multiply_in_bfloat16(name: str, tmp_path: Path) -> None:
    network = AutoModelForCausalLM.from_pretrained(
        save_model(BY_NAME[name], tmp_path), dtype=torch.bfloat16
    )
    assert choose_residuals(network, "float32", 64) == torch.float32
    seen: dict[str, set[torch.dtype]] = {"layer": set(), "product": set()}

    def watch(kind: str) -> Any:
        def hook(_module: nn.Module, inputs: tuple[Any, ...], asked: dict[str, Any]) -> None:
            rows = [*inputs, asked.get("hidden_states")][0]
            assert isinstance(rows, Tensor)
            seen[kind].add(rows.dtype)

        return hook

    for module in network.modules():
        if isinstance(module, nn.Linear):
            module.register_forward_pre_hook(watch("product"), with_kwargs=True)
        elif isinstance(module, nn.ModuleList) and len(module) == 2:
            for layer in module:
                layer.register_forward_pre_hook(watch("layer"), with_kwargs=True)
    with torch.inference_mode():
        network(input_ids=torch.arange(3, 20)[None])
    assert seen["layer"] == {torch.float32}
    assert seen["product"] <= {torch.bfloat16}


def test_it_decides_bits(deep: Path) -> None:
    ids = {load_model(deep, residual_dtype=kind).info.numerics_id for kind in ("auto", "float32")}
    assert len(ids) == 2


def test_a_model_in_float32_has_it_already(deep: Path) -> None:
    infos = [
        load_model(deep, dtype="float32", residual_dtype=kind).info for kind in ("auto", "float32")
    ]
    assert {info.residual_dtype for info in infos} == {"float32"}
    assert infos[0].numerics_id == infos[1].numerics_id


def test_a_model_that_cannot(tmp_path: Path) -> None:
    """OLMo 2 has its norms behind the products, which therefore would see the stream itself."""
    folder = save_model(BY_NAME["olmo2"], tmp_path)
    with pytest.raises(ConfigurationError, match="cannot be kept in float32: a forward pass fail"):
        load_model(folder, dtype="bfloat16", residual_dtype="float32")


def test_a_model_that_notices_the_type(tmp_path: Path) -> None:
    folder = save_model(BY_NAME["llama"], tmp_path)
    network = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16)

    def odd(_module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...] | None:
        return (-inputs[0],) if inputs[0].dtype == torch.float32 else None

    network.model.layers[1].register_forward_pre_hook(odd)
    with pytest.raises(ConfigurationError, match="answers something else"):
        choose_residuals(network, "float32", 64)


def test_a_model_whose_stream_is_normalised(tmp_path: Path) -> None:
    """BLOOM's embeddings go through a norm, which gives the body's type."""
    torch.manual_seed(0)
    config = BloomConfig(vocab_size=VOCAB, hidden_size=32, n_layer=2, n_head=4)
    BloomForCausalLM(config).save_pretrained(tmp_path)
    with pytest.raises(ConfigurationError, match="of type bfloat16, such as a norm of embeddings"):
        load_model(tmp_path, dtype="bfloat16", residual_dtype="float32", max_model_len=64)


def test_a_type_that_there_is_not(deep: Path) -> None:
    with pytest.raises(ConfigurationError, match="'bfloat16' is none of auto, float32"):
        load_model(deep, residual_dtype="bfloat16")
