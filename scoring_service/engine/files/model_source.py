"""Where a model's files are, as its name says. Imports no torch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from scoring_service.errors import ConfigurationError
from scoring_service.types import EngineConfig


def source_of(config: EngineConfig) -> tuple[str, dict[str, Any]]:
    """Where `from_pretrained` finds the model, and the arguments that go with it.

    Raises:
        ConfigurationError: it can only be a file or folder, and there is none.
    """
    arguments: dict[str, Any] = {"trust_remote_code": config.trust_remote_code}
    if config.revision is not None:
        arguments["revision"] = config.revision
    path = Path(config.model).expanduser()
    if path.suffix == ".gguf":
        if not path.is_file():
            raise ConfigurationError(f"there is no file {config.model}")
        return str(path.parent), {**arguments, "gguf_file": path.name}
    if path.is_dir():
        return str(path), arguments
    if path.is_absolute() or config.model.startswith((".", "~")):
        raise ConfigurationError(f"there is no folder {config.model}")
    return config.model, arguments
