"""Which processor computes, as far as it decides bits."""

from __future__ import annotations

import os
from pathlib import Path

import torch

_MATTERS = ("avx", "amx", "fma", "f16c", "sve", "asimd", "bf16", "i8mm")
"""Beginnings of the names of instruction sets that matrix libraries choose kernels by."""

_CHOICES = (
    "ONEDNN_MAX_CPU_ISA",
    "DNNL_MAX_CPU_ISA",
    "ONEDNN_CPU_ISA_HINTS",
    "DNNL_CPU_ISA_HINTS",
    "ONEDNN_DEFAULT_FPMATH_MODE",
    "DNNL_DEFAULT_FPMATH_MODE",
    "MKL_CBWR",
    "MKL_ENABLE_INSTRUCTIONS",
)
"""Variables that choose for them."""


def describe_processor() -> str:
    """Model, instruction sets and what the environment allows of them.

    torch's own name of the capability ("AVX512") is too coarse: oneDNN rounds otherwise with AMX or
    bf16 instructions, and MKL by the maker.
    """
    found: dict[str, str] = {}
    for line in _cpuinfo().splitlines():
        name, _, value = line.partition(":")
        found.setdefault(name.strip(), value.strip())
    names = (found.get("flags") or found.get("Features") or "").split()
    return "; ".join(
        [
            torch.backends.cpu.get_cpu_capability(),
            "" if _may_use_tiles() else "without AMX",
            found.get("model name") or found.get("CPU part", ""),
            " ".join(sorted(name for name in names if name.startswith(_MATTERS))),
            *(f"{name}={os.environ[name]}" for name in _CHOICES if name in os.environ),
        ]
    )


def _may_use_tiles() -> bool:
    """Whether the kernel lets a process use AMX: a sandbox may refuse what the processor has."""
    return bool(getattr(torch.cpu, "_init_amx", bool)())


def _cpuinfo() -> str:
    path = Path("/proc/cpuinfo")
    return path.read_text() if path.is_file() else ""
