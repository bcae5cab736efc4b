"""Values of the Helm chart for a pod of one worker: memory of the host, room for the files."""

from __future__ import annotations

from math import ceil
from typing import Any

from scoring_service.plan.estimate import Plan
from scoring_service.types import PAGE_TOKENS

_GIB = 1 << 30
_GPU_HOST_GIB = 16
"""Of the two processes on a GPU's host: torch and CUDA, results that wait, the tokenizer."""
_CPU_HOST_GIB = 2
_ON_THE_WAY = 1.25
"""Times the weights: what the host holds of them while they are read and sent to the GPU."""
_ON_DISK = 2.2
"""Times the weights as they are stored: some repositories have them as safetensors and as *.bin,
of which the download leaves out neither, not knowing which there are; and some files beside."""
_START_SECONDS = 900
"""The chart's own startupSeconds."""
_LIVE_VERSIONS = 3
"""Versions that the process which serves gRPC holds: the running one, the one before it (or the
next, while it is received), and one that calls still use."""


def chart_values(
    plan: Plan, device: str, served_bytes: int, stored_bytes: int, *, live_weights: bool
) -> dict[str, Any]:
    """Return values of one entry of the chart's `models`.

    Args:
        plan: of the replica.
        device: "cpu" or "cuda".
        served_bytes: of the weights in the type in which they are served.
        stored_bytes: of the weights in the type in which their files have them.
        live_weights: whether a trainer pushes weights.
    """
    memory = host_bytes(plan, device, served_bytes, live_weights=live_weights)
    limit = f"{_rounded_up(memory, 1 if device == 'cpu' else 8)}Gi"
    values: dict[str, Any] = {"gpus": 1} if device == "cuda" else {}
    values |= {
        "resources": {"requests": {"memory": limit}, "limits": {"memory": limit}},
        "cache": {"enabled": True, "size": f"{_rounded_up(int(_ON_DISK * stored_bytes), 5)}Gi"},
    }
    # 10 s a GB, from a network disk, and what follows the reading.
    start = 300 * ceil((10e-9 * stored_bytes + 120) / 300)
    if start > _START_SECONDS:
        values["startupSeconds"] = start
    if live_weights:
        values["liveWeights"] = {"enabled": True}
    return values


def host_bytes(plan: Plan, device: str, served_bytes: int, *, live_weights: bool) -> int:
    """Return the memory of the host that a pod of one worker takes; arguments as above."""
    if device == "cpu":
        pages = plan.pages * PAGE_TOKENS * plan.kv_bytes_per_token
        # Beside the running version a worker prepares the next.
        versions = 2 if live_weights else 1
        memory = versions * plan.weights_bytes + pages + plan.step_bytes + _CPU_HOST_GIB * _GIB
    else:
        memory = int(_ON_THE_WAY * served_bytes) + _GPU_HOST_GIB * _GIB
    if live_weights:
        memory += _LIVE_VERSIONS * served_bytes
    return memory


def chart_lines(values: dict[str, Any]) -> str:
    """Return the values as YAML, a line each."""
    lines = [f"  {name}: {_flow(value)}" for name, value in values.items()]
    return "\n".join(["A model's values in the Helm chart:", *lines])


def _rounded_up(size: int, step: int) -> int:
    return step * ceil(size / _GIB / step)


def _flow(value: Any) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{name}: {_flow(inner)}" for name, inner in value.items()) + "}"
    return str(value).lower() if isinstance(value, bool) else str(value)
