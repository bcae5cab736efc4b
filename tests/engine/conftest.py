"""Models, each loaded once: by the engine, and apart from it by plain transformers."""

from __future__ import annotations

import fcntl
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.utils import logging as transformers_logging

from benchmarks.prepare_model import save_gguf
from scoring_service.engine.loading.loader import LoadedModel
from scoring_service.kernels.cpu.ops import load_cpu_kernels
from scoring_service.models import tiny_model_path
from tests.engine import plain
from tests.engine.loading import load_model
from tests.smollm2 import fetched_smollm2
from tests.torch_threads import one_torch_thread

__all__ = ["one_torch_thread"]

transformers_logging.disable_progress_bar()


@pytest.fixture(scope="session")
def bf16_products() -> None:
    """Skips where the processor cannot multiply bfloat16 as the C++ kernels want it."""
    if not load_cpu_kernels().multiplies_wide(torch.empty(1, 2, dtype=torch.bfloat16)):
        pytest.skip("no bf16 products on this machine")


@pytest.fixture(scope="session")
def tiny_packed() -> LoadedModel:
    """The packaged model in float32."""
    loaded = load_model(tiny_model_path(), dtype="float32")
    assert loaded.info.packed
    return loaded


@pytest.fixture(scope="session")
def tiny_plain() -> LoadedModel:
    """The same on the plain path."""
    loaded = load_model(tiny_model_path(), dtype="float32", path="plain")
    assert not loaded.info.packed
    return loaded


@pytest.fixture(scope="session", params=["tiny_packed", "tiny_plain"])
def tiny(request: pytest.FixtureRequest) -> LoadedModel:
    """The packaged model in float32, on either path."""
    loaded: LoadedModel = request.getfixturevalue(request.param)
    return loaded


@pytest.fixture(scope="session")
def tiny_bfloat16() -> LoadedModel:
    """The packaged model as stored: a bfloat16 body, and the float32 head that is the default."""
    return load_model(tiny_model_path())


@pytest.fixture(scope="session")
def plain_tiny() -> Any:
    return plain.load(tiny_model_path(), torch.float32)


@pytest.fixture(scope="session")
def smollm2_wide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """SmolLM2-135M's config with random weights and two of its thirty layers.

    Layers run one after another, so that a step takes as much with two of them as with thirty.
    """
    folder = tmp_path_factory.mktemp("smollm2-wide")
    config = LlamaConfig(
        vocab_size=49_152,
        hidden_size=576,
        intermediate_size=1536,
        num_hidden_layers=2,
        num_attention_heads=9,
        num_key_value_heads=3,
        max_position_embeddings=8192,
        tie_word_embeddings=True,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def smollm2_file() -> Path:
    return fetched_smollm2()


@pytest.fixture(scope="session")
def smollm2_folder(smollm2_file: Path) -> Path:
    """What transformers reads of that file, in float32: unpacking its weights takes long.

    Kept beside it, and written once however many processes ask.
    """
    folder = smollm2_file.with_name(f"{smollm2_file.stem}-float32-{transformers.__version__}")
    with smollm2_file.open("rb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        if not folder.exists():
            partial = folder.with_suffix(".partial")
            save_gguf(smollm2_file, partial, torch.float32)
            partial.rename(folder)
    return folder


@pytest.fixture(scope="session")
def smollm2(smollm2_folder: Path) -> LoadedModel:
    return load_model(smollm2_folder, dtype="float32")


@pytest.fixture(scope="session")
def plain_smollm2(smollm2_folder: Path) -> Any:
    return plain.load(smollm2_folder, torch.float32)


@pytest.fixture(scope="session")
def exact_smollm2(smollm2_folder: Path) -> Any:
    return plain.load(smollm2_folder, torch.float64)
