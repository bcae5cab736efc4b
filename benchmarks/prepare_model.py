"""A `.gguf` model as a folder that every peer reads: `python -m benchmarks.prepare_model`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer


def save_gguf(source: Path, folder: Path, dtype: torch.dtype) -> None:
    """Writes what transformers reads of FILE.gguf in the Hugging Face layout."""
    place: dict[str, Any] = {"gguf_file": source.name}
    tokenizer = AutoTokenizer.from_pretrained(source.parent, **place)
    read = AutoModelForCausalLM.from_pretrained(source.parent, dtype=dtype, **place)
    # What was read keeps calling itself quantised, which transformers does not save.
    config = read.config
    del config.quantization_config
    model = AutoModelForCausalLM.from_config(config, dtype=dtype)
    model.load_state_dict(read.state_dict())
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def main() -> None:
    """Converts FILE.gguf to FOLDER in bfloat16, unless that is there already."""
    source, folder = map(Path, sys.argv[1:3])
    if not (folder / "config.json").exists():
        save_gguf(source, folder, torch.bfloat16)
    print(folder)


if __name__ == "__main__":
    main()
