"""The device that a worker computes on, by its name."""

from __future__ import annotations

import torch

from scoring_service.errors import ConfigurationError


def find_device(name: str) -> torch.device:
    """A device by its name; "auto" = a GPU where there is one.

    Raises:
        ConfigurationError: it cannot be used.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ConfigurationError(f"device {name!r} cannot be used: {error}") from error
    return device


def device_name(device: torch.device) -> str:
    """Which GPU it is, or that it is none."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
