"""The engine's loader, for tests."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from scoring_service.engine.loading.loader import LoadedModel, load
from scoring_service.types import EngineConfig
from tests.torch_threads import torch_threads


def load_model(source: Path | str, threads: int = 1, **settings: Any) -> LoadedModel:
    """Loads a folder or file with the engine on the CPU; torch's threads are left as they were."""
    config = EngineConfig(model=str(source), device="cpu", threads=threads, **settings)
    with torch_threads(torch.get_num_threads()):
        return load(config, on_stage=lambda _: None)
