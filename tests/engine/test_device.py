"""What is chosen of torch where a worker computes on a GPU."""

from __future__ import annotations

import os
import subprocess
import sys

PINNED = """
import torch

from scoring_service.engine.machine.device import prepare_device

names = (
    "allow_tf32", "allow_bf16_reduced_precision_reduction",
    "allow_fp16_reduced_precision_reduction", "allow_fp16_accumulation",
)
matmul = torch.backends.cuda.matmul
matmul.allow_fp16_accumulation = True
before = [bool(getattr(matmul, name)) for name in names]
prepare_device(torch.device("cuda"))
print(before, [bool(getattr(matmul, name)) for name in names], torch.get_float32_matmul_precision())
"""


def test_products_are_held_to_fp32_sums() -> None:
    """Whatever the image's environment and torch's defaults say; no GPU is touched."""
    environment = {**os.environ, "TORCH_ALLOW_TF32_CUBLAS_OVERRIDE": "1"}
    found = subprocess.run(
        [sys.executable, "-c", PINNED], capture_output=True, text=True, check=True, env=environment
    )
    assert found.stdout.strip() == f"{[True] * 4} {[False] * 4} highest"
