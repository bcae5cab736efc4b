"""What cannot be loaded is refused in a sentence that says what to change."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import huggingface_hub.constants
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from scoring_service.config import ServeConfig, check_ranges
from scoring_service.engine.loading.loader import load
from scoring_service.errors import ConfigurationError
from scoring_service.models import tiny_model_path
from scoring_service.types import PAGE_TOKENS, EngineConfig
from tests.engine.loading import load_model
from tests.engine.small_models import ARCHITECTURES, Architecture, save_model


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A copy of the packaged model, to be broken."""
    return Path(shutil.copytree(tiny_model_path(), tmp_path / "model"))


def refused(source: Path | str, **settings: Any) -> str:
    """The message of the refusal: one readable line or two, and no trace of a stack."""
    with pytest.raises(ConfigurationError) as caught:
        load_model(source, **settings)
    message = str(caught.value)
    assert 10 < len(message) < 700
    assert "Traceback" not in message
    assert 'File "' not in message
    assert "object at 0x" not in message
    return message


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    message = refused(tmp_path / "nowhere")
    assert "no folder" in message
    assert str(tmp_path / "nowhere") in message
    assert "no folder ./nowhere" in refused("./nowhere")


def test_a_gguf_file_that_is_not_there(tmp_path: Path) -> None:
    message = refused(tmp_path / "nothing.gguf")
    assert "no file" in message
    assert "nothing.gguf" in message


def test_a_gguf_file_that_is_none(tmp_path: Path) -> None:
    (tmp_path / "junk.gguf").write_bytes(b"junk" * 100)
    assert "GGUF" in refused(tmp_path / "junk.gguf")


def test_a_folder_that_is_no_model(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("nothing here")
    assert str(tmp_path) in refused(tmp_path)


def test_a_model_of_the_hub_that_cannot_be_had() -> None:
    assert "nobody/no-such-model" in refused("nobody/no-such-model")


@pytest.mark.parametrize("model_type", ["clip", "t5", "no-such-type"])
def test_a_model_that_is_no_causal_lm(tmp_path: Path, model_type: str) -> None:
    """transformers lists every architecture it knows; what is quoted ends before."""
    (tmp_path / "config.json").write_text(json.dumps({"model_type": model_type}))
    message = refused(tmp_path)
    assert model_type in message.lower()


def broken_config(folder: Path) -> None:
    (folder / "config.json").write_text('{"model_')


def wrong_field(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "num_attention_heads": "four"}))


def wrong_shapes(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "intermediate_size": 100}))


def no_weights(folder: Path) -> None:
    (folder / "model.safetensors").unlink()


def half_the_weights(folder: Path) -> None:
    weights = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(weights[: len(weights) // 2])


def empty_weights(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(b"")


def broken_tokenizer(folder: Path) -> None:
    (folder / "tokenizer.json").write_text('{"version": "1.0", ')


def other_tokenizer_format(folder: Path) -> None:
    (folder / "tokenizer.json").write_text('{"version": "1.0"}')


@pytest.mark.parametrize(
    "break_it",
    [
        broken_config,
        wrong_field,
        wrong_shapes,
        no_weights,
        half_the_weights,
        empty_weights,
        broken_tokenizer,
        other_tokenizer_format,
    ],
)
def test_a_broken_folder(folder: Path, break_it: Callable[[Path], None]) -> None:
    break_it(folder)
    assert str(folder) in refused(folder)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "pytorch_model-00001-of-00001.bin"])
def test_pickles_are_not_read(folder: Path, name: str) -> None:
    """Though all of the model is in them."""
    tensors = load_file(folder / "model.safetensors")
    torch.save(tensors, folder / name)
    if name != "pytorch_model.bin":
        index = {"metadata": {}, "weight_map": dict.fromkeys(tensors, name)}
        (folder / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    (folder / "model.safetensors").unlink()
    message = refused(folder)
    assert "has no weights in safetensors" in message
    assert "save_pretrained" in message


@pytest.mark.parametrize("name", ["model.layers.1.mlp.down_proj.weight", "model.norm.weight"])
def test_a_missing_weight(folder: Path, name: str) -> None:
    """transformers would fill it with random numbers, and every score would be wrong."""
    tensors = load_file(folder / "model.safetensors")
    del tensors[name]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    assert name in refused(folder)


def test_a_superfluous_weight_is_no_harm(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    before = load_model(folder).info.weights_digest
    tensors["model.extra.weight"] = tensors["model.norm.weight"].clone()
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    assert load_model(folder).info.weights_digest == before


@pytest.mark.parametrize("setting", ["dtype", "head_dtype"])
def test_an_unknown_dtype(setting: str) -> None:
    message = refused(tiny_model_path(), **{setting: "int3"})
    assert "int3" in message
    assert "bfloat16" in message


@pytest.mark.parametrize("device", ["banana", "cuda:99"])
def test_an_unknown_device(device: str) -> None:
    with pytest.raises(ConfigurationError, match=device):
        load(EngineConfig(model=str(tiny_model_path()), device=device), lambda _: None)


def test_more_positions_than_the_model_has() -> None:
    message = refused(tiny_model_path(), max_model_len=4097)
    assert "4097" in message
    assert "4096" in message


def test_a_model_without_positions_needs_a_length(tmp_path: Path) -> None:
    (mamba,) = [a for a in ARCHITECTURES if a.name == "mamba"]
    save_model(mamba, tmp_path)
    assert "max_model_len" in refused(tmp_path)
    assert load_model(tmp_path, max_model_len=33).info.max_sequence_tokens == 33


@pytest.mark.parametrize("is_decoder", [False, True])
def test_a_model_that_reads_both_ways(tmp_path: Path, is_decoder: bool) -> None:
    """transformers takes an encoder for a causal LM and only warns; its scores mean nothing."""
    settings = {
        "vocab_size": 97,
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 48,
        "initializer_range": 0.3,
        "is_decoder": is_decoder,
    }
    save_model(Architecture("bert", "BertConfig", settings), tmp_path)
    if is_decoder:
        load_model(tmp_path)
    else:
        assert "no causal LM" in refused(tmp_path)


def test_a_model_that_transformers_cannot_run_in_a_type(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As one whose layer computes in float32 before a layer of bfloat16."""
    forward = LlamaRMSNorm.forward
    monkeypatch.setattr(LlamaRMSNorm, "forward", lambda norm, x: forward(norm, x).float())
    message = refused(folder, dtype="bfloat16")
    assert message.startswith("transformers cannot run this model in bfloat16: expected ")
    assert "to have the same dtype" in message
    load_model(folder, dtype="float32")


def test_chunks_are_whole_pages() -> None:
    """Else a sequence that is short enough could need more pages than there are, and wait."""
    for size in (PAGE_TOKENS, 3 * PAGE_TOKENS):
        check_ranges(ServeConfig(chunk_size=size))
    for size in (PAGE_TOKENS + 1, 100):
        with pytest.raises(ValueError, match="chunk_size must be a multiple of 16, not"):
            check_ranges(ServeConfig(chunk_size=size))
