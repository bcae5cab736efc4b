"""Which worker runs where."""

from __future__ import annotations

import math
import os
import re
from dataclasses import replace
from pathlib import Path

from scoring_service.pool.workers.processors import processor_quota, usable_processors
from scoring_service.types import EngineConfig


def gpu_count() -> int:
    """GPUs that a worker would see, without asking a driver: this process loads none."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        names = [name.strip() for name in visible.split(",")]
        # As CUDA reads it: what follows an invalid index is not seen.
        return names.index("-1") if "-1" in names else len([n for n in names if n])
    return sum(bool(re.fullmatch(r"nvidia\d+", path.name)) for path in Path("/dev").glob("nvidia*"))


def default_workers(device: str) -> int:
    """One a GPU where workers may choose theirs, else one."""
    return max(1, gpu_count()) if device in ("auto", "cuda") else 1


def placed(config: EngineConfig, index: int, workers: int) -> EngineConfig:
    """The configuration of one of several workers: its own GPU, or its share of the CPU threads."""
    gpus = gpu_count() if config.device in ("auto", "cuda") else 0
    if gpus:
        return config if workers == 1 else replace(config, device=f"cuda:{index % gpus}")
    if config.threads is not None or (workers == 1 and math.isinf(processor_quota())):
        return config  # as it was told, or torch's own choice
    return replace(config, threads=max(1, usable_processors() // workers))
