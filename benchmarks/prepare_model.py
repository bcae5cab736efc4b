"""A `.gguf` model as a folder that every peer reads: `python -m benchmarks.prepare_model`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer


def main() -> None:
    """Converts FILE.gguf to FOLDER in bfloat16, unless that is there already."""
    source, folder = map(Path, sys.argv[1:3])
    if not (folder / "config.json").exists():
        place: dict[str, Any] = {"gguf_file": source.name}
        tokenizer = AutoTokenizer.from_pretrained(source.parent, **place)
        read = AutoModelForCausalLM.from_pretrained(source.parent, dtype=torch.bfloat16, **place)
        # What was read keeps calling itself quantised, which transformers does not save.
        config = read.config
        del config.quantization_config
        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
        model.load_state_dict(read.state_dict())
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    print(folder)


if __name__ == "__main__":
    main()
