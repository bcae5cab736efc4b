"""Models, each loaded once: by the engine, and apart from it by plain transformers."""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.utils import logging as transformers_logging

from benchmarks.prepare_model import save_gguf
from scoring_service.engine.loading.loader import LoadedModel
from scoring_service.models import tiny_model_path
from tests.engine import plain
from tests.engine.loading import load_model

REPOSITORY = Path(__file__).parents[2]

transformers_logging.disable_progress_bar()


@pytest.fixture(scope="module", autouse=True)
def one_torch_thread() -> Iterator[None]:
    """Models are small here, and a second thread only waits on a busy machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


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
    """The GGUF file of SmolLM2-135M, fetched when it is not there."""
    tool = REPOSITORY / "tools" / "fetch_smollm2.py"
    fetched = subprocess.run([sys.executable, tool], capture_output=True, text=True, check=False)
    if fetched.returncode != 0:
        message = f"SmolLM2-135M cannot be fetched: {fetched.stderr.strip()}"
        if os.environ.get("CI") == "true":
            pytest.fail(message)
        pytest.skip(message)
    return Path(fetched.stdout.strip())


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
