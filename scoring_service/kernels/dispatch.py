"""Which back-end computes on a device: Triton kernels on CUDA, plain torch elsewhere.

Triton is imported only when a tile of a CUDA device asks for it, so that machines without a GPU
need not have it.
"""

from __future__ import annotations

import functools
import importlib.util
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor

from scoring_service.kernels import reference
from scoring_service.kernels.body import BodyKernels
from scoring_service.kernels.cpu.ops import CpuKernels
from scoring_service.kernels.cpu.tile import CompiledTile
from scoring_service.kernels.tile import EagerTile, ReferenceTile, Tile
from scoring_service.kernels.transfer import to_device_async
from scoring_service.types import Int32Array

_MIN_CAPABILITY = (8, 0)
"""Ampere: what the kernels are compiled and checked for begins here."""

_FUSED_ROWS = 64
"""Up to so many rows the weight's bytes decide, and the fused kernel reads them once."""


_refused: set[int | None] = set()
"""Indices of the CUDA devices whose tiles were found to be none of Triton's."""


def backend(device: torch.device) -> str:
    """What makes numbers of tiles of logits on a device: "triton" or "eager"."""
    return "triton" if _takes_triton(device) and _index(device) not in _refused else "eager"


def use_triton(device: torch.device, allowed: bool) -> None:
    """Lets Triton's kernels make numbers of tiles on a device, or no longer.

    For those who tried them (`engine.trials.head_trial`, at load): where they fail or err, torch's
    operators take their place from then on, in the whole process.
    """
    if allowed:
        _refused.discard(_index(device))
    else:
        _refused.add(_index(device))


@contextmanager
def without_triton(device: torch.device) -> Iterator[None]:
    """Torch's operators make numbers of tiles meanwhile."""
    use_triton(device, False)
    try:
        yield
    finally:
        use_triton(device, True)


def attends_by_triton(device: torch.device) -> bool:
    """Whether the attention of packed steps on a device is a Triton kernel's, if it works there."""
    return _takes_triton(device)


def body_kernels(device: torch.device) -> BodyKernels | None:
    """Triton's kernels of what stands between a body's matrix products, if they work there."""
    if not _takes_triton(device):
        return None
    # Imported where a CUDA device is, and nowhere else.
    from scoring_service.kernels.gpu.body import TritonBody

    return TritonBody()


def version(device: torch.device) -> str | None:
    """Of the library that may decide bits beside torch, None where there is none."""
    if not _takes_triton(device):
        return None
    import triton

    return str(triton.__version__)


def _takes_triton(device: torch.device) -> bool:
    return device.type == "cuda" and _has_triton(device.index)


def _index(device: torch.device) -> int | None:
    """Its number: tensors have one, where a device's name may have none."""
    named = str(device)
    return torch.cuda.current_device() if named == "cuda" else device.index


@functools.cache
def _has_triton(index: int | None) -> bool:
    capable = torch.cuda.get_device_capability(index) >= _MIN_CAPABILITY
    return capable and importlib.util.find_spec("triton") is not None


def make_tile(
    logits_T_V: Tensor,
    temperatures: float | Sequence[float],
    realised_ids_T: Int32Array | None = None,
    token_id_limit: int | None = None,
    kernels: CpuKernels | None = None,
) -> Tile:
    """Rows at their temperatures.

    Args:
        logits_T_V: finished, float32 or what the head's product has; they stay as they are.
        temperatures: of all rows, or one for each.
        realised_ids_T: tokens whose rank may be asked, known now so that one read does; -1 = none.
        token_id_limit: of those ranks.
        kernels: the C++ kernels, for logits on a CPU.
    """
    by_row = _by_row(temperatures, logits_T_V.device)
    if backend(logits_T_V.device) == "triton":
        return _triton_tile(logits_T_V, by_row, realised_ids_T, token_id_limit)
    if kernels is not None and logits_T_V.device.type == "cpu" and kernels.takes(logits_T_V.dtype):
        return CompiledTile(kernels, logits_T_V, by_row)
    return EagerTile(reference.scale(logits_T_V, by_row))


def _by_row(temperatures: float | Sequence[float], device: torch.device) -> float | Tensor:
    """One number where rows share it: then x may be the logits themselves. Else float32 [T]."""
    if not isinstance(temperatures, Sequence):
        return temperatures
    if len(set(temperatures)) == 1:
        return temperatures[0]
    return to_device_async(torch.tensor(temperatures, dtype=torch.float32), device)


def _triton_tile(
    logits_T_V: Tensor,
    temperatures: float | Tensor,
    realised_ids_T: Int32Array | None,
    token_id_limit: int | None,
) -> Tile:
    # Imported where a CUDA device is, and nowhere else.
    from scoring_service.kernels.gpu.tile import TritonTile

    targets_T = None
    if realised_ids_T is not None:
        targets_T = torch.from_numpy(realised_ids_T.astype(np.int64)).clamp_(min=0)
    return TritonTile(logits_T_V, temperatures, targets_T=targets_T, token_id_limit=token_id_limit)


def reference_tile(logits_T_V: Tensor, temperatures: float | Sequence[float]) -> Tile:
    """Rows at their temperatures as the plain path has them, on every device.

    Args:
        logits_T_V: finished, float32.
        temperatures: of all rows, or one for each.
    """
    return ReferenceTile(reference.scale(logits_T_V, _by_row(temperatures, logits_T_V.device)))


def linear_route(device: torch.device, rows: int) -> str:
    """How `linear_logprobs` goes from hidden states to log-probs: fused, tiled or eager."""
    if backend(device) == "eager":
        return "eager"
    return "fused" if rows <= _FUSED_ROWS else "tiled"
