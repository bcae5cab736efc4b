"""Takes the tensors of an update as they come, checks them, and lays them into shared memory."""

from __future__ import annotations

import difflib
from dataclasses import dataclass, replace

from scoring_service.engine.weight_memory import (
    ELEMENT_BYTES,
    FLOATING,
    HEADER_BYTES,
    Layout,
    Region,
    WeightMemory,
    WriterState,
)
from scoring_service.errors import Fault, Reason, ServiceError, invalid
from scoring_service.types import TensorSpec

_NAMED = 3
"""Tensors that a message names."""


@dataclass(frozen=True, slots=True)
class TensorChunk:
    """A run of bytes of one tensor."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    offset: int
    """Bytes of the tensor before it."""
    data: memoryview | bytes


class WeightReceiver:
    """Fills the memory of one update.

    Args:
        specs: tensors of the model, in ascending order of names.
        layout: of the memory.
        memory: to fill.
        converts: whether floating-point tensors may come in other types than the model's.
    """

    def __init__(
        self, specs: tuple[TensorSpec, ...], layout: Layout, memory: WeightMemory, *, converts: bool
    ) -> None:
        self.bytes_received = 0
        self._specs = {spec.name: spec for spec in specs}
        self._memory = memory
        self._converts = converts
        self._regions = dict(layout.regions)
        self._size = layout.size
        self._received: dict[str, int] = {}
        """First name of a tensor -> bytes of it so far."""
        self._given: dict[str, str] = {}
        """First name of a tensor -> the name under which it comes."""
        self._order = list(layout.regions)
        self._front = 0
        """Tensors of `_order` that are complete, without a gap."""

    @property
    def layout(self) -> Layout:
        """With the types in which tensors came."""
        return Layout(self._regions, self._size)

    @property
    def missing(self) -> list[str]:
        """Tensors of which nothing came, or not everything."""
        return [name for name in self._order if not self._is_complete(name)]

    @property
    def begun(self) -> list[str]:
        """Those of which something came, but not everything."""
        return [name for name in self.missing if name in self._received]

    @property
    def tensors_received(self) -> int:
        """Complete ones."""
        return sum(self._is_complete(name) for name in self._received)

    def take(self, chunk: TensorChunk, path: str) -> None:
        """Takes a run of bytes.

        Args:
            chunk: what came.
            path: of the field, for messages.

        Raises:
            ServiceError: INVALID_FIELD; nothing of the chunk was taken.
        """
        region = self._region_of(chunk, path)
        first = region.spec.name
        so_far = self._received.get(first, 0)
        if chunk.offset != so_far:
            raise invalid(
                f"{path}.offset", f"{chunk.offset} of {chunk.name!r}: {so_far} bytes came so far"
            )
        size = len(chunk.data)
        if so_far + size > region.size:
            raise invalid(
                f"{path}.data",
                f"{size} bytes from {so_far} on: {chunk.name!r} has {region.size}",
            )
        if not size and region.size:
            raise invalid(f"{path}.data", "is empty")
        place = region.offset + so_far
        self._memory.view[place : place + size] = chunk.data
        self._received[first] = so_far + size
        self._given[first] = chunk.name
        self._regions[first] = region
        self.bytes_received += size
        self._advance()

    def filled(self) -> None:
        """Everything that was missing was written by somebody else: readers may read all of it."""
        self._memory.publish(self._size - HEADER_BYTES, WriterState.COMPLETE)

    def _region_of(self, chunk: TensorChunk, path: str) -> Region:
        spec = self._specs.get(chunk.name)
        if spec is None:
            raise invalid(f"{path}.name", _unknown(chunk.name, list(self._specs)))
        first = spec.tied_to or spec.name
        given = self._given.get(first, chunk.name)
        if given != chunk.name:
            raise invalid(
                f"{path}.name", f"{chunk.name!r} is tied to {given!r}, which came already"
            )
        if chunk.shape != spec.shape:
            raise invalid(
                f"{path}.shape", f"{list(chunk.shape)} of {chunk.name!r}, not {list(spec.shape)}"
            )
        region = self._regions[first]
        if first in self._received:
            if chunk.dtype != region.dtype:
                raise invalid(
                    f"{path}.dtype", f"{chunk.dtype} of {chunk.name!r} after {region.dtype}"
                )
            return region
        if chunk.dtype != spec.dtype:
            convertible = {chunk.dtype, spec.dtype} <= FLOATING
            if not (self._converts and convertible):
                hint = "" if not convertible else " (convert_dtypes converts)"
                raise invalid(
                    f"{path}.dtype", f"{chunk.dtype} of {chunk.name!r}, not {spec.dtype}{hint}"
                )
        return replace(region, dtype=chunk.dtype)

    def _is_complete(self, name: str) -> bool:
        return name in self._received and self._received[name] == self._regions[name].size

    def _advance(self) -> None:
        """Tells readers how much lies there without a gap, in the order in which they hash it."""
        while self._front < len(self._order) and self._is_complete(self._order[self._front]):
            self._front += 1
        if self._front == len(self._order):
            ready = self._size
        else:
            name = self._order[self._front]
            ready = self._regions[name].offset + self._received.get(name, 0)
        self._memory.publish(ready - HEADER_BYTES)


def incomplete(receiver: WeightReceiver) -> ServiceError:
    """WEIGHTS_INCOMPLETE, naming some of what is missing."""
    cut, missing = receiver.begun, receiver.missing
    named = ", ".join(repr(name) for name in (cut or missing)[:_NAMED])
    if cut:
        message = f"{len(cut)} tensors came in part, such as {named}"
    else:
        message = f"{len(missing)} tensors did not come, such as {named} (`partial` keeps them)"
    return ServiceError(Fault(Reason.WEIGHTS_INCOMPLETE, message))


def widest_element() -> int:
    """Bytes of the widest floating-point type."""
    return max(ELEMENT_BYTES[name] for name in FLOATING)


def unsupported(specs: tuple[TensorSpec, ...]) -> str:
    """Why weights of these tensors cannot be updated; empty if they can."""
    if not specs:
        return "the model does not tell its tensors"
    odd = sorted({spec.dtype for spec in specs} - ELEMENT_BYTES.keys())
    return f"the model has tensors of type {', '.join(odd)}" if odd else ""


def _unknown(name: str, known: list[str]) -> str:
    close = difflib.get_close_matches(name[:200], known, n=1)
    hint = f"; did you mean {close[0]!r}?" if close else ""
    return f"the model has no tensor {name[:200]!r}{hint}"
