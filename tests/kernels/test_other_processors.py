"""The C++ kernels as processors with other instructions have them."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

FILES = sorted(Path(__file__).parent.glob("test_cpu_*.py"))

AS_AVX2 = """
import sys, pytest, torch
assert torch.backends.cpu.get_cpu_capability() == "AVX2"
sys.exit(pytest.main(sys.argv[1:]))
"""
NEEDED = 600
"""Tests of them that pass, at least: that one is skipped must not be how all get through."""

IN_PRODUCTS = """
from scoring_service.kernels.cpu.ops import load_cpu_kernels
import torch
kernels = load_cpu_kernels()
print([kernels.attends(dtype, 64) for dtype in (torch.float32, torch.bfloat16)])
print(kernels.multiplies_wide(torch.empty(2, 2, dtype=torch.bfloat16)))
"""


@pytest.mark.skipif(
    torch.backends.cpu.get_cpu_capability() != "AVX512",
    reason="no bf16 products on this machine, whose own instructions the other tests have",
)
def test_the_kernels_as_avx2_has_them() -> None:
    """Vectors of another width, other headers of torch's: all tests of the kernels, once more."""
    ran = subprocess.run(
        [sys.executable, "-c", AS_AVX2, "-q", "-p", "no:cacheprovider", *map(str, FILES)],
        env={**os.environ, "ATEN_CPU_CAPABILITY": "avx2"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 0, ran.stdout[-4000:] + ran.stderr[-4000:]
    passed = re.search(r"(\d+) passed", ran.stdout)
    assert passed
    assert int(passed[1]) >= NEEDED, ran.stdout[-4000:]


@pytest.mark.parametrize("isa", ["AVX2", "AVX512_CORE", "AVX512_CORE_VNNI"])
def test_processors_without_products_of_bf16_are_told(isa: str) -> None:
    """Asked beforehand: an attention that ran into it would end the process."""
    ran = subprocess.run(
        [sys.executable, "-c", IN_PRODUCTS],
        env={**os.environ, "ONEDNN_MAX_CPU_ISA": isa},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.stdout == "[True, False]\nFalse\n", ran.stderr
