"""`python -m benchmarks.gpu`: engine and transformers on a bare GPU machine, in ten minutes.

Needs torch, triton, transformers and numpy, and no network: the model is made here, with random
weights in the shape of a 1.5-billion-parameter Qwen 3. Leaves `benchmarks/results/gpu.json`.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, Qwen3Config

from benchmarks.side_process import ROOT

_TIME_LIMIT = 420
"""Seconds after which no repetition begins; making the model and loading it come on top."""


def main() -> None:
    """Makes the model and measures."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--size", choices=("small", "gpu"), default="gpu")
    parser.add_argument("--layers", type=int, default=24)
    parser.add_argument("--sides", default="bare,engine,transformers-padded")
    parser.add_argument(
        "--workloads", default="grpo,topk-128,skewed,sample-64,wide,topk-1024,long,sample-1,mixed"
    )
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--name", default="gpu")
    arguments = parser.parse_args()
    model = make_model(ROOT / "build" / "models" / f"random-{arguments.layers}", arguments.layers)
    command = [sys.executable, "-m", "benchmarks", "--model", str(model)]
    for name in ("device", "size", "sides", "workloads", "repetitions", "name"):
        command += [f"--{name}", str(getattr(arguments, name))]
    subprocess.run([*command, "--time-limit", str(_TIME_LIMIT)], cwd=ROOT, check=True)


def make_model(folder: Path, layers: int) -> Path:
    """A Qwen 3 of this depth with random bfloat16 weights; made once."""
    if not (folder / "config.json").is_file():
        torch.manual_seed(0)
        config = Qwen3Config(
            vocab_size=151_936,
            hidden_size=2048,
            intermediate_size=6144,
            num_hidden_layers=layers,
            num_attention_heads=16,
            num_key_value_heads=8,
            head_dim=128,
            max_position_embeddings=40_960,
            tie_word_embeddings=True,
        )
        network = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
        network.save_pretrained(folder)
    return folder


if __name__ == "__main__":
    main()
