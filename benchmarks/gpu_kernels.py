"""`python -m benchmarks.gpu_kernels`: the Triton kernels against the machine's limits and peers.

Needs a CUDA device, torch, triton and numpy; Liger-Kernel, cut-cross-entropy and FlashInfer take
part where they are installed. Random data, rotated buffers, graph replay; what some rows hold is
checked, against float64 where it is rounded, and where a target is missed the profile says why.
A case that fails is put down, and the others are measured (`gpu_cases`). Leaves
`benchmarks/results/gpu-kernels.json`, in seven minutes.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from benchmarks.gpu_attention import attention
from benchmarks.gpu_body import body
from benchmarks.gpu_cases import run_cases, run_part
from benchmarks.gpu_judging import is_wrong
from benchmarks.gpu_linear import logprobs
from benchmarks.gpu_sampler import sampler
from benchmarks.gpu_sizes import DRY, Sizes
from benchmarks.gpu_table import tables
from benchmarks.gpu_top_k import top_k
from benchmarks.json_file import write_json
from benchmarks.machine import copy_rate, describe, matrix_rate, origin, version_of
from benchmarks.peers import cut_cross_entropy, flashinfer_sampler, liger

RESULTS = Path(__file__).parent / "results"
_TIME_LIMIT = 380
"""Seconds after which no further measurement begins."""

PARTS = {"logprobs": 0.35, "top-k": 0.2, "attention": 0.15, "body": 0.1, "sampler": 1.0}
"""In this order, and the share that each may take of the time that is left."""

CASES = {
    "logprobs": logprobs,
    "attention": attention,
    "body": body,
    "top-k": top_k,
    "sampler": sampler,
}

_LIMITS = "GPU_KERNELS_LIMITS"
"""Where parts find what the machine can do."""


def main() -> int:
    """Measures and writes; 2 where there is no CUDA device, 1 where a case failed or is wrong."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu_kernels", description=__doc__)
    parser.add_argument("--dry-run", action="store_true", help="tiny sizes in the interpreter")
    parser.add_argument("--parts", default=",".join(PARTS))
    parser.add_argument("--output", type=Path, default=RESULTS / "gpu-kernels.json")
    parser.add_argument("--time-limit", type=float, default=_TIME_LIMIT, help="seconds")
    # What this program tells the processes that it starts for its parts.
    parser.add_argument("--piece", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--skip", type=int, default=0, help=argparse.SUPPRESS)
    parser.add_argument("--seconds", type=float, default=_TIME_LIMIT, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.dry_run:
        os.environ["TRITON_INTERPRET"] = "1"
    elif not torch.cuda.is_available():
        print(
            "There is no CUDA device here: nothing was measured, and no file was written.\n"
            "`--dry-run` goes through the script at tiny sizes in Triton's interpreter.",
            file=sys.stderr,
        )
        return 2
    sizes = DRY if arguments.dry_run else Sizes()
    device = "cpu" if arguments.dry_run else "cuda"
    if arguments.piece is not None:
        limits = json.loads(os.environ[_LIMITS])
        cases = CASES[arguments.parts](sizes, device, limits)
        return run_cases(cases, arguments.piece, arguments.skip, arguments.seconds)
    return measure_all(arguments, sizes, device)


def measure_all(arguments: argparse.Namespace, sizes: Sizes, device: str) -> int:
    """Every part in a process of its own; 1 where a case failed, or left wrong numbers."""
    began = time.monotonic()
    peers = (liger, cut_cross_entropy, flashinfer_sampler)
    report: dict[str, Any] = {
        **origin(),
        "machine": machine(device, sizes),
        "peers": {peer.DISTRIBUTION: version_of(peer.DISTRIBUTION) for peer in peers},
        "sizes": asdict(sizes),
    }
    if device == "cuda":
        torch.cuda.empty_cache()
    os.environ[_LIMITS] = json.dumps(report["machine"])
    names = arguments.parts.split(",")
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    for place, name in enumerate(names):
        left = arguments.time_limit - (time.monotonic() - began)
        share = 1.0 if place == len(names) - 1 else PARTS[name]
        command = [sys.executable, "-m", "benchmarks.gpu_kernels", "--parts", name]
        command += ["--dry-run"] * arguments.dry_run
        piece = arguments.output.with_suffix(f".{name}.json")
        report[name] = run_part(command, piece, left * share)
        # After every part; what a part has so far is in its piece.
        write_json(arguments.output, report)
    print(tables(report, names), flush=True)
    return int(any(is_wrong(figure) for name in names for figure in report[name]))


def machine(device: str, sizes: Sizes) -> dict[str, Any]:
    """Its description and what it can do, measured now."""
    return {
        **describe(),
        "matrix_flops_per_second": matrix_rate(
            "bfloat16", sizes.rows, sizes.hidden, min(sizes.vocab, 16_384), device
        ),
        "copy_bytes_per_second": copy_rate(device),
    }


if __name__ == "__main__":
    sys.exit(main())
