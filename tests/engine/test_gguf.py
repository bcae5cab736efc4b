"""Models in GGUF files: the same weights, tokenizer and facts as in the layout that others have.

A tiny one in `make test`; `make soak ARGS=tests/engine/test_gguf.py` unpacks SmolLM2 as well.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from scoring_service.engine.loading.loader import LoadedModel
from tests.engine.loading import load_model
from tests.engine.small_gguf import write_small_gguf
from tests.intensity import SOAK


def test_a_gguf_file_is_what_its_format_says(tmp_path: Path) -> None:
    file, unpacked = tmp_path / "tiny.gguf", tmp_path / "unpacked"
    write_small_gguf(file, unpacked)
    loaded, expected = load_model(file, dtype="float32"), load_model(unpacked, dtype="float32")
    info = loaded.info
    assert info.weights_digest == expected.info.weights_digest
    assert info.architecture == "LlamaForCausalLM"
    assert info.vocab_size == 2048
    assert info.parameter_count == expected.info.parameter_count
    assert info.max_sequence_tokens == 4096
    assert loaded.codec is not None
    assert loaded.codec.size == 2048
    assert info.eos_token_ids == (0,)


@pytest.mark.smollm2
@pytest.mark.skipif(not SOAK, reason="minutes: unpacks all of SmolLM2; set SOAK=1")
def test_a_gguf_file_is_what_transformers_reads_of_it(
    smollm2_file: Path, smollm2: LoadedModel
) -> None:
    loaded = load_model(smollm2_file, dtype="float32")
    info = loaded.info
    assert info.weights_digest == smollm2.info.weights_digest
    assert info.architecture == "LlamaForCausalLM"
    assert info.vocab_size == 49152
    assert info.parameter_count == 134_515_008
    assert info.max_sequence_tokens == 8192
    assert loaded.codec is not None
    assert loaded.codec.size == 49152
    assert info.eos_token_ids == (2,)
