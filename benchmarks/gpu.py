"""`python -m benchmarks.gpu`: engine and transformers on a bare GPU machine, in nine minutes.

Needs torch, triton, transformers and numpy, and no network: the model is made here, with random
weights in the shape of a 1.5-billion-parameter Qwen 3. The workloads that matter most come first
and have more repetitions; padded batches, the slowest side by far, run once in those and in no
others. Results are written after each workload, and what fails is put down and passed over. Leaves
`benchmarks/results/gpu.json`; `python -m benchmarks.report` draws its plots elsewhere.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, Qwen3Config

from benchmarks.side_process import ROOT

_TIME_LIMIT = 460
"""Seconds after which no repetition begins, making the model and loading it included."""

_THRIFT = ("whole-workloads", "later-repetitions", "slow-sides")

_PATIENCE = 40
"""Seconds that the repetition that is running then may still take, and the sides to end."""


def main() -> None:
    """Makes the model and measures."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--size", choices=("small", "gpu"), default="gpu")
    parser.add_argument("--layers", type=int, default=24)
    parser.add_argument(
        "--sides", default="bare,engine,engine@float32,engine-eager,transformers-padded"
    )
    parser.add_argument(
        "--workloads",
        default="grpo,wide,sample-64,topk-128,flat,topk-1024,sample-1,topk-20,sample-16,topk-rows,"
        "mixed,skewed,long",
    )
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--whole-workloads", type=int, default=5)
    parser.add_argument("--later-repetitions", type=int, default=2)
    parser.add_argument("--slow-sides", default="transformers-padded")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results")
    parser.add_argument("--name", default="gpu")
    parser.add_argument("--time-limit", type=float, default=_TIME_LIMIT, help="seconds")
    arguments = parser.parse_args()
    began = time.monotonic()
    folder = ROOT / "build" / "models" / f"random-{arguments.layers}"
    model = make_model(folder, arguments.layers, arguments.device)
    command = [sys.executable, "-m", "benchmarks", "--model", str(model)]
    for name in ("device", "size", "sides", "workloads", "repetitions", "name", *_THRIFT):
        command += [f"--{name}", str(getattr(arguments, name.replace("-", "_")))]
    command += ["--out", str(arguments.out.resolve())]
    # The sides share the device: the pages of engines must leave room for the others' logits.
    engines = sum(name.startswith(("engine", "service")) for name in arguments.sides.split(","))
    command += ["--memory-utilization", f"{0.5 / max(1, engines):.2f}"]
    command += ["--patience", str(_PATIENCE), "--no-plots"]
    left = arguments.time_limit - (time.monotonic() - began)
    subprocess.run([*command, "--time-limit", f"{left:.0f}"], cwd=ROOT, check=True)


def make_model(folder: Path, layers: int, device: str) -> Path:
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
        with torch.device(device):  # which draws a billion numbers sooner than a processor does
            network = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
        folder.parent.mkdir(parents=True, exist_ok=True)
        # Its config is written before its weights: one that was interrupted must not pass for made.
        with tempfile.TemporaryDirectory(prefix=f"{folder.name}-", dir=folder.parent) as unfinished:
            saved = Path(unfinished) / "model"
            network.save_pretrained(saved)
            saved.rename(folder)
    return folder


if __name__ == "__main__":
    main()
