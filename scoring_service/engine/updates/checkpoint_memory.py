"""Memory that loading a checkpoint takes, before its tensors are copied to where they belong."""

from __future__ import annotations

import contextlib
from math import prod
from pathlib import Path

from safetensors import SafetensorError, safe_open

from scoring_service.engine.weight_memory import Layout
from scoring_service.types import TensorSpec

_SAFETENSORS = {
    "BF16": "bfloat16",
    "F16": "float16",
    "F32": "float32",
    "F64": "float64",
    "I64": "int64",
    "I32": "int32",
    "U8": "uint8",
    "BOOL": "bool",
}
"""Names of element types there, and in torch."""

_WORKING_BYTES = 8
"""Of an element of the largest tensor that is converted: it is there as a float32 twice (measured
with a GGUF file in bfloat16 and float32)."""


def loading_bytes(model: str, specs: tuple[TensorSpec, ...], layout: Layout) -> int:
    """Bytes that transformers takes to load a model.

    Tensors of a safetensors file that have the model's names and types stay in the file, mapped,
    and take nothing. All others are copied. Of a model on the Hub it is not known before it is
    there; most are stored as they are served.

    Args:
        model: folder, .gguf file or name of a repository.
        specs: tensors of the model.
        layout: of those that have memory of their own.
    """
    path = Path(model).expanduser()
    if not path.exists():
        return 0
    mapped = _tensors_of(path)
    copied = {
        spec.tied_to or spec.name for spec in specs if mapped.get(spec.name) != spec.dtype
    } - {spec.tied_to or spec.name for spec in specs if mapped.get(spec.name) == spec.dtype}
    if not copied:
        return 0
    regions = [layout.regions[name] for name in copied]
    largest = max(prod(region.spec.shape) for region in regions)
    return sum(region.size for region in regions) + _WORKING_BYTES * largest


def _tensors_of(path: Path) -> dict[str, str]:
    """Element types by the names of tensors in a folder's safetensors files."""
    found: dict[str, str] = {}
    for file in path.glob("*.safetensors") if path.is_dir() else ():
        # A folder may hold others than the model's: an adapter that is being written, say. Whether
        # one that cannot be read is missed is for who loads the model to judge.
        with contextlib.suppress(SafetensorError, OSError):
            found |= _tensors_in(file)
    return found


def _tensors_in(file: Path) -> dict[str, str]:
    """Element types by the names of tensors.

    Raises:
        SafetensorError: it is cut short, or none of that kind.
        OSError: it cannot be read.
    """
    found = {}
    with safe_open(file, framework="pt") as tensors:
        for name in tensors.keys():  # noqa: SIM118 - it is no mapping
            dtype = tensors.get_slice(name).get_dtype()
            found[name] = _SAFETENSORS.get(dtype, dtype)
    return found
