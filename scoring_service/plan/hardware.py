"""What a device can do: rates and memory, stated or measured."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Device = Literal["cuda", "cpu"]


@dataclass(frozen=True, slots=True)
class Hardware:
    """One device: what a worker process has."""

    device: Device
    memory_bytes: float
    matrix_flops: float
    """FLOP/s of a matrix product."""
    bandwidth: float
    """Bytes/s of reading memory."""
    scoring_efficiency: float
    """Share of the limit that scoring reaches."""
    decode_efficiency: float
    """Share of the limit that drawing tokens reaches."""
    source: str
    """Where the figures are from."""


_UNMEASURED = 0.4
"""Assumed of GPUs, where nothing has been measured yet."""


def _gpu(name: str, gigabytes: float, teraflops: float, terabytes: float) -> Hardware:
    return Hardware(
        "cuda", gigabytes * 1e9, teraflops * 1e12, terabytes * 1e12, _UNMEASURED, _UNMEASURED,
        f"{name}: the vendor's peak rates, dense bfloat16; the efficiency is assumed, not measured",
    )  # fmt: skip


PRESETS: dict[str, Hardware] = {
    "h200": _gpu("NVIDIA H200 SXM", 141, 989, 4.8),
    "h100": _gpu("NVIDIA H100 SXM", 80, 989, 3.35),
    "a100": _gpu("NVIDIA A100 80GB SXM", 80, 312, 2.039),
    "l40s": _gpu("NVIDIA L40S", 48, 362, 0.864),
    "cpu-2-cores": Hardware(
        "cpu", 16e9, 431e9, 34.9e9, 0.75, 0.35,
        "two cores of an AMD EPYC with AVX-512, a body in bfloat16 and the default head: rates and "
        "efficiencies (workloads skewed and sample-16) as measured in "
        "benchmarks/results/cpu-float32-head.json, in a slow minute of the host",
    ),
}  # fmt: skip
