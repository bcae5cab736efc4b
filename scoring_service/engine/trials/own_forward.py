"""Whether transformers itself can run a model as it was loaded."""

from __future__ import annotations

from typing import Any

import torch

from scoring_service.engine.fused.trials import first_line
from scoring_service.engine.machine.memory import is_lost, is_refused_memory
from scoring_service.errors import ConfigurationError

_TOKENS = 4


def refuse_what_does_not_run(network: Any, device: torch.device) -> None:
    """Runs a few tokens through a model as transformers made it.

    Some fail in one type (a layer in float32 before one in bfloat16), or ask for more than ids.

    Raises:
        ConfigurationError: it fails, with what transformers says.
    """
    ids = torch.zeros((1, _TOKENS), dtype=torch.int64, device=device)
    try:
        with torch.inference_mode():
            network(input_ids=ids, use_cache=False)
    except Exception as error:
        if is_refused_memory(error) or is_lost(device):
            raise
        kind = str(network.dtype).removeprefix("torch.")
        raise ConfigurationError(
            f"transformers cannot run this model in {kind}: {first_line(error)}"
        ) from error
