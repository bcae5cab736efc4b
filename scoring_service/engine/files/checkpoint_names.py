"""Under which names a checkpoint has what is one tensor of a model.

transformers renames tensors while it loads files, and joins some: experts that a checkpoint has one
by one are one tensor of the model. Trainers of other frameworks have the checkpoint's names.
"""

from __future__ import annotations

import textwrap
from collections.abc import Callable
from dataclasses import replace
from math import prod
from typing import Any

import torch
from transformers.core_model_loading import revert_weight_conversion

from scoring_service.types import TensorSpec

_PROBE = (4, 6, 6, 6)
"""Extents, after the first, of what stands for a tensor: enough to tell a transposition."""


class _IrreversibleError(Exception):
    """transformers does not say what a tensor was made of."""


def with_checkpoint_names(
    network: Any, specs: tuple[TensorSpec, ...], on_stage: Callable[[str], None]
) -> tuple[TensorSpec, ...]:
    """Adds to tensors the names that they, or the parts they consist of, have in a checkpoint.

    Args:
        network: transformers' own.
        specs: its tensors.
        on_stage: is told once of those whose names in a checkpoint could not be found out.
    """
    named, unnamed = [], []
    for spec in specs:
        try:
            named.append(replace(spec, checkpoint_names=_checkpoint_names(network, spec)))
        except _IrreversibleError as error:
            named.append(spec)
            unnamed.append(f"{spec.name}: {error}")
    if unnamed:
        on_stage(
            f"{len(unnamed)} of {len(specs)} tensors have no name but the model's own: how they "
            f"are loaded could not be reversed, of {unnamed[0]}"
        )
    return tuple(named)


def _checkpoint_names(network: Any, spec: TensorSpec) -> tuple[str, ...]:
    """In the order in which their bytes make the tensor; empty where it is saved as it is.

    Raises:
        _IrreversibleError: they cannot be found out for this tensor alone.
    """
    extents = (*spec.shape[:1], *map(min, spec.shape[1:], _PROBE))
    try:
        whole = revert_weight_conversion(
            network, {spec.name: torch.empty(spec.shape, device="meta")}
        )
        if list(whole) == [spec.name]:
            return ()
        probe = revert_weight_conversion(
            network, {spec.name: torch.arange(prod(extents)).reshape(extents)}
        )
    except Exception as error:  # those of many operations have no common base
        reason = textwrap.shorten(f"{type(error).__name__}: {error}", 200, placeholder=" …")
        raise _IrreversibleError(reason) from error
    if whole.keys() != probe.keys() or not all(part.numel() for part in probe.values()):
        return ()
    names = sorted(probe, key=lambda name: int(probe[name].flatten()[0]))
    in_order = torch.cat([probe[name].flatten() for name in names])
    if not torch.equal(in_order, torch.arange(prod(extents))):
        return ()  # transposed, interleaved or copied
    found = _pattern(names, spec)
    shapes = {tuple(whole[name].shape) for name in names}
    return found if shapes == {_part_shape(spec.shape, found)} else ()


def _part_shape(shape: tuple[int, ...], names: tuple[str, ...]) -> tuple[int, ...]:
    """Of each part of a tensor."""
    if "*" in names[0]:
        shape = shape[1:]
    if not shape:
        return ()
    return (shape[0] // len(names), *shape[1:])


def _pattern(names: list[str], spec: TensorSpec) -> tuple[str, ...]:
    """Names with `*` for 0, 1, … of the first dimension, where they are so; else as they are."""
    count = spec.shape[0] if spec.shape else 0
    if len(names) > 1 and count and len(names) % count == 0:
        first = names[: len(names) // count]
        for place in range(names[0].count(".0.")):
            patterns = [_starred(name, place) for name in first]
            if [p.replace("*", str(i)) for i in range(count) for p in patterns] == names:
                return tuple(patterns)
    return tuple(names)


def _starred(name: str, place: int) -> str:
    """With the numbered occurrence of a component 0 replaced by `*`."""
    parts = name.split(".0.")
    return ".0.".join(parts[: place + 1]) + ".*." + ".0.".join(parts[place + 1 :])
