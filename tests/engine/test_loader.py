"""What a loaded model says of itself."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from transformers import GenerationConfig

from scoring_service.engine.files import tokenizer_file
from scoring_service.engine.files.generation_config import eos_token_ids, explicit_settings
from scoring_service.engine.loading.loader import LoadedModel, load
from scoring_service.models import tiny_model_path
from scoring_service.types import EngineConfig
from tests.engine.loading import load_model
from tests.engine.small_models import ARCHITECTURES, save_model


def test_the_packaged_model(tiny_bfloat16: LoadedModel, plain_tiny: Any) -> None:
    info = tiny_bfloat16.info
    assert info.architecture == "LlamaForCausalLM"
    assert info.vocab_size == 2048
    assert info.parameter_count == sum(p.numel() for p in plain_tiny.parameters())
    assert info.max_sequence_tokens == 4096
    assert (info.dtype, info.head_dtype) == ("bfloat16", "float32")
    assert (info.backend, info.device) == ("compiled-cpu", "cpu")
    assert info.deterministic
    assert info.packed
    assert info.chunk_size == 64
    assert info.path_reason
    assert info.eos_token_ids == (0,)
    assert len(info.weights_digest) == 64


def test_limits_are_the_least_of_all() -> None:
    def limit(**settings: Any) -> int:
        return load_model(tiny_model_path(), **settings).info.max_sequence_tokens

    assert limit(max_model_len=100) == 100
    assert limit(max_model_len=10) == 10
    assert limit(max_batch_tokens=77) == 4096
    assert limit(path="plain", max_batch_tokens=77) == 77
    assert limit(path="plain", max_model_len=100, max_batch_tokens=77) == 77
    assert limit(path="plain", max_batch_tokens=10**6) == 4096


def test_stages_are_told() -> None:
    stages: list[str] = []
    load(EngineConfig(model=str(tiny_model_path())), stages.append)
    assert len(stages) >= 3
    assert str(tiny_model_path()) in stages[0]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_dtypes(dtype: str) -> None:
    info = load_model(tiny_model_path(), dtype=dtype).info
    assert info.dtype == dtype
    assert info.head_dtype == "float32"


@pytest.mark.parametrize("name", ["llama", "gemma2", "gpt2", "qwen3", "mamba"])
def test_a_folder_without_tokenizer_has_no_codec(tmp_path: Path, name: str) -> None:
    """transformers makes up one of special tokens alone, which would lose every text."""
    (architecture,) = [a for a in ARCHITECTURES if a.name == name]
    loaded = load_model(save_model(architecture, tmp_path), max_model_len=32)
    assert loaded.codec is None
    assert loaded.info.tokenizer_json is None
    assert loaded.info.tokenizer_reason
    assert loaded.info.bos_token_id is None


def test_a_tokenizer_that_cannot_be_fetched_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """The Hub has it and cannot be asked: ids are scored, texts refused, and why is told."""

    def no_connection(*_: object, **__: object) -> None:
        raise OSError("We couldn't connect to the Hub")

    monkeypatch.setattr(tokenizer_file.AutoTokenizer, "from_pretrained", no_connection)
    monkeypatch.setattr(Path, "is_file", lambda _: False)
    config = EngineConfig(model="someone/something")
    found, reason = tokenizer_file.load_tokenizer(config)
    assert found is None
    assert "We couldn't connect to the Hub" in reason
    assert "someone/something" in reason


def test_a_model_shorter_than_the_probe(tmp_path: Path) -> None:
    """Five positions are enough to load."""
    torch.manual_seed(0)
    config = transformers.GPT2Config(
        vocab_size=20, n_embd=16, n_layer=1, n_head=2, n_positions=5, bos_token_id=0, eos_token_id=0
    )
    transformers.GPT2LMHeadModel(config).save_pretrained(tmp_path)
    assert load_model(tmp_path).info.max_sequence_tokens == 5


def test_settings_of_the_models_authors() -> None:
    """Only what differs from transformers' defaults, and no bookkeeping."""
    config = GenerationConfig(temperature=0.6, top_p=0.95, repetition_penalty=1.1, eos_token_id=[2])
    settings = explicit_settings(config)
    assert settings["temperature"] == 0.6
    assert settings["top_p"] == 0.95
    assert settings["repetition_penalty"] == 1.1
    assert "transformers_version" not in settings
    assert "top_k" not in settings
    assert explicit_settings(None) == {}


@pytest.mark.parametrize(
    ("generation", "config", "expected"),
    [
        (2, 2, (2,)),
        ([7, 3], 5, (3, 5, 7)),
        (None, [4, 4], (4,)),
        (None, None, ()),
        # Neither can be drawn: -1 stands for none, the other is left over from a larger model.
        (-1, 50256, ()),
        ([3, 100], 99, (3, 99)),
    ],
)
def test_ids_that_end_a_sample(generation: Any, config: Any, expected: tuple[int, ...]) -> None:
    class Config:
        eos_token_id = config

    assert eos_token_ids(GenerationConfig(eos_token_id=generation), Config, 100) == expected


def test_no_generation_config_of_its_own(tmp_path: Path) -> None:
    shutil.copytree(tiny_model_path(), tmp_path / "model")
    (tmp_path / "model" / "generation_config.json").unlink()
    assert load_model(tmp_path / "model").info.eos_token_ids == (0,)
