"""The engine's loader, for tests."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from scoring_service.engine.loading.loader import LoadedModel, load
from scoring_service.types import EngineConfig


def load_model(source: Path | str, threads: int = 1, **settings: Any) -> LoadedModel:
    """Loads a folder or file with the engine on the CPU; torch's threads are left as they were."""
    before = torch.get_num_threads()
    config = EngineConfig(model=str(source), device="cpu", threads=threads, **settings)
    try:
        return load(config, on_stage=lambda _: None)
    finally:
        torch.set_num_threads(before)
