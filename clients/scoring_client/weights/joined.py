"""Tensors that a checkpoint has in parts, such as experts one by one, made whole.

transformers joins them while it loads files; the server tells which, in which order.
"""

from collections.abc import Container, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

from scoring_client.errors import InvalidRequestError
from scoring_client.weights.results import WeightTensor
from scoring_client.weights.tensors import dtype_of, is_torch


@dataclass(frozen=True, slots=True)
class Place:
    """Where a trainer's tensor belongs: a tensor of the model, or one of its parts."""

    spec: WeightTensor
    index: int = 0
    """Number of the part."""
    count: int = 1
    """Parts of the tensor."""
    shape: tuple[int, ...] = ()
    """Extent of each dimension of a part, where there are several."""


def checkpoint_places(tensors: Iterable[WeightTensor]) -> dict[str, Place]:
    """Return the places of tensors by the names that a checkpoint has for them."""
    places = {}
    for spec in tensors:
        names, shape = list(spec.checkpoint_names), spec.shape
        if any("*" in name for name in names):
            names = [name.replace("*", str(i)) for i in range(shape[0]) for name in names]
            shape = shape[1:]
        if len(names) > 1:
            shape = (shape[0] // len(spec.checkpoint_names), *shape[1:])
        for index, name in enumerate(names):
            places[name] = Place(spec, index, len(names), shape)
    return places


class JoinedTensor:
    """A tensor whose parts come one by one, in any order."""

    def __init__(self, spec: WeightTensor, count: int) -> None:
        """Expect so many parts."""
        self.spec = spec
        self.whole: Any = None
        """[*spec.shape] in host memory, of torch's if the parts are, once there is a part."""
        self.count = count
        self.there: set[int] = set()
        """Numbers of the parts that came."""

    def add(self, place: Place, name: str, tensor: Any) -> None:
        """Copy a part to where it belongs.

        Raises:
            InvalidRequestError: it came already, or has another shape or type than it should.
        """
        if place.index in self.there:
            raise InvalidRequestError(f"{name} is there twice")
        shape = tuple(getattr(tensor, "shape", ()))
        if shape != place.shape:
            raise InvalidRequestError(
                f"{name} has shape {list(shape)}, but a part of {self.spec.name} has "
                f"{list(place.shape)}"
            )
        if self.whole is None:
            self.whole = _empty_like(tensor, self.spec.shape)
        if is_torch(tensor) != is_torch(self.whole) or dtype_of(tensor) != dtype_of(self.whole):
            raise InvalidRequestError(
                f"{name} is {dtype_of(tensor)} of {type(tensor).__name__}, but other parts of "
                f"{self.spec.name} are {dtype_of(self.whole)} of {type(self.whole).__name__}"
            )
        parts = self.whole.reshape(self.count, *place.shape)
        if is_torch(tensor):
            parts[place.index].copy_(tensor.detach())
        else:
            parts[place.index] = tensor
        self.there.add(place.index)


def check_parts(spec: WeightTensor, count: int, there: Container[int]) -> None:
    """Check that every part of a tensor is there.

    Raises:
        InvalidRequestError: some are not.
    """
    missing = [index for index in range(count) if index not in there]
    if missing:
        raise InvalidRequestError(
            f"{len(missing)} of the {count} parts of {spec.name} are missing, number {missing[0]} "
            f"for one (they are named {' and '.join(spec.checkpoint_names)})"
        )


def _empty_like(tensor: Any, shape: tuple[int, ...]) -> Any:
    """Return memory for a whole tensor, on the host."""
    if is_torch(tensor):
        return tensor.detach().new_empty(shape, device="cpu")
    return np.empty(shape, dtype=np.asarray(tensor).dtype)
