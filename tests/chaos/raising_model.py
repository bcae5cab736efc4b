"""The packaged model with a forward that fails at certain tokens, as a model's own code may."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from scoring_service.models import tiny_model_path

RAISES = 2040
"""A token at which the model raises an exception."""

EXITS = 2041
"""A token at which it ends its process."""

_CODE = f"""
from transformers import LlamaForCausalLM


class RaisingForCausalLM(LlamaForCausalLM):
    def forward(self, input_ids=None, **kwargs):
        if (input_ids == {RAISES}).any():
            raise RuntimeError("the model met a token that it does not like")
        if (input_ids == {EXITS}).any():
            raise SystemExit(1)
        return super().forward(input_ids=input_ids, **kwargs)
"""


def save_raising_model(folder: Path) -> Path:
    """The model's folder; to be served with --trust-remote-code."""
    model = folder / "raising"
    shutil.copytree(tiny_model_path(), model)
    config = json.loads((model / "config.json").read_text())
    config["auto_map"] = {"AutoModelForCausalLM": "modeling_raising.RaisingForCausalLM"}
    (model / "config.json").write_text(json.dumps(config))
    (model / "modeling_raising.py").write_text(_CODE)
    return model
