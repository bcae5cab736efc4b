"""The weights of one version, as a network takes them; and how a network changes them.

A network keeps its modules and changes what is in them: every parameter is pointed to another
tensor, so that whatever refers to a module or a parameter (ties, hooks, fused layers) stays right.
That takes microseconds a tensor, so two versions can answer by turns.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from scoring_service.engine.fused.prepacked import packed_layers, packed_of, repacked, use_packed
from scoring_service.engine.head.head import LinearHead, RowHead
from scoring_service.engine.machine.memory import cached_memory, free_memory
from scoring_service.engine.weights.tensor_specs import tensor_specs

_SPARE = 1.25
"""New weights are put beside old ones if so many times their size is free."""


@dataclass(eq=False, slots=True, weakref_slot=True)
class ModelWeights:
    """Tensors of one version, and what is made of them."""

    version: int
    digest: str
    numerics_id: str
    cache_key: bytes
    """What cached prompts depend on, beside tokens and salt."""
    head: RowHead
    tensors: dict[str, Tensor] = field(default_factory=dict)
    """By the first name of each."""
    packed: dict[str, Tensor] = field(default_factory=dict)
    """Of linear layers, by the layer's name; see `prepacked`."""


@dataclass(slots=True)
class Prepared:
    """What was made of tensors that came already, while others are still on their way."""

    packed: dict[str, Tensor] = field(default_factory=dict)
    head: RowHead | None = None


class Slots:
    """Where a network keeps its tensors, and what is made of them beside it."""

    def __init__(self, network: Any, head: RowHead) -> None:
        state: dict[str, Tensor] = network.state_dict(keep_vars=True)
        self.specs = tensor_specs(state)
        # Every name has its holder: tied tensors may be one parameter, or two with one memory.
        self._holders = [(spec.tied_to or spec.name, state[spec.name]) for spec in self.specs]
        self.buffers = frozenset(
            name for name, holder in self._holders if not isinstance(holder, torch.nn.Parameter)
        )
        """Tensors that a model may write to while it computes, as it never does to parameters."""
        self._layers = packed_layers(network)
        names = {id(holder): name for name, holder in self._holders}
        self._packed_from = {name: names[id(layer.weight)] for name, layer in self._layers.items()}
        output = network.get_output_embeddings()
        self._head_weight = names.get(id(getattr(output, "weight", None)), "")
        self._head_bias = names.get(id(getattr(output, "bias", None)), "")
        self.bare_head = head.without_memory() if isinstance(head, LinearHead) else head
        """What the head does, until there are weights for it."""
        self._copied_head_bytes = head.copied_bytes if isinstance(head, LinearHead) else 0
        self._spare_head: Tensor | None = None

    def own(
        self, head: RowHead, version: int, digest: str, numerics_id: str, cache_key: bytes
    ) -> ModelWeights:
        """What is in place now, as the model was loaded."""
        return ModelWeights(
            version=version,
            digest=digest,
            numerics_id=numerics_id,
            cache_key=cache_key,
            head=head,
            tensors={name: holder.data for name, holder in self._holders},
            packed={name: packed_of(layer) for name, layer in self._layers.items()},
        )

    def point_to(self, weights: ModelWeights) -> None:
        """Lets the network use these."""
        for name, holder in self._holders:
            holder.data = weights.tensors[name]
        for name, layer in self._layers.items():
            use_packed(layer, weights.packed[name])

    def forget(self) -> None:
        """Lets go of whatever is in place, so that its memory can be had before the next comes."""
        for _, holder in self._holders:
            holder.data = torch.empty(0, dtype=holder.dtype, device=holder.device)
        for layer in self._layers.values():
            use_packed(layer, torch.empty(0))
        self._spare_head = None

    def build(
        self,
        tensors: dict[str, Tensor],
        prepared: Prepared,
        version: int,
        digest: str,
        numerics_id: str,
        cache_key: bytes,
        go_on: Callable[[], None],
    ) -> ModelWeights:
        """Weights of other tensors, of the network's own types and shapes, on its device.

        Args:
            tensors: by the first name of each.
            prepared: what was made of some of them already; the rest is made now.
            version: of them.
            digest: of them.
            numerics_id: of a model with them.
            cache_key: see `ModelWeights`.
            go_on: called between tensors; what it raises ends it.
        """
        for source in set(self._packed_from.values()):
            go_on()
            self.prepare(source, tensors[source], prepared)
        head = prepared.head or self.head_of(tensors)
        return ModelWeights(version, digest, numerics_id, cache_key, head, tensors, prepared.packed)

    def prepare(self, name: str, tensor: Tensor, prepared: Prepared) -> None:
        """Makes what takes time of one tensor, unless it is made."""
        for layer, source in self._packed_from.items():
            if source == name and layer not in prepared.packed:
                prepared.packed[layer] = repacked(tensor)
        if name == self._head_weight and not self._head_bias and prepared.head is None:
            prepared.head = self.head_of({name: tensor})

    def head_of(self, tensors: dict[str, Tensor]) -> RowHead:
        """The head with other weights."""
        head = self.bare_head
        if not isinstance(head, LinearHead):
            return head
        # Large memory that was used before costs a fraction of new memory.
        spare, self._spare_head = self._spare_head, None
        bias = tensors[self._head_bias] if self._head_bias else None
        return head.with_weight(tensors[self._head_weight], bias, spare)

    def reclaim(self, weights: ModelWeights) -> None:
        """Keeps memory of weights that are dropped for the next ones."""
        head = weights.head
        if not isinstance(head, LinearHead) or not head.copied_bytes:
            return
        if head.matmul.overwrites and not head.prepared.is_cuda:
            self._spare_head = head.prepared

    def extra_bytes(self, device: torch.device) -> int:
        """Memory that other weights take beside the memory that is shared with the server."""
        held = dict(self._holders)
        if device.type != "cpu":
            return sum(map(_size, held.values()))
        size = sum(_size(held[name]) for name in self._packed_from.values())
        return size + self._copied_head_bytes


def room_for(size: int, device: torch.device, steps: int = 0) -> bool:
    """Whether so many bytes may be taken beside what there is.

    Args:
        size: of the weights.
        device: that is to have them.
        steps: bytes that steps may take on a GPU. What they took before may be in torch's cache and
            may not, so it counts as free and is set aside; 0 = what is cached does not count.
    """
    free = free_memory(device)
    if steps:
        free += cached_memory(device) - steps
    return size * _SPARE <= free


def copies_on(
    device: torch.device, tensors: dict[str, Tensor], go_on: Callable[[], None]
) -> dict[str, Tensor]:
    """Tensors of the host on a device, while its steps go on.

    A copy from ordinary memory takes its turn among the steps, and holds up those behind it: on a
    GPU they are made on a stream of their own. Their memory is the steps' stream's, which uses them
    and lets go of them.

    Args:
        device: a CPU gets the tensors themselves.
        tensors: by name.
        go_on: called before each copy; what it raises ends it.
    """
    if device.type != "cuda":
        return {name: tensor.to(device) for name, tensor in tensors.items()}
    copies = {name: torch.empty_like(tensor, device=device) for name, tensor in tensors.items()}
    stream = torch.cuda.Stream(device)
    # What had this memory before may still be read by steps that were launched.
    stream.wait_stream(torch.cuda.current_stream(device))
    try:
        with torch.cuda.stream(stream):
            for name, tensor in tensors.items():
                go_on()
                copies[name].copy_(tensor)
    finally:
        # Also before the memory of what failed goes to others.
        stream.synchronize()
    return copies


def _size(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()
