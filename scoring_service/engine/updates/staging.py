"""An update on its way to weights: its memory is read and hashed while it is written."""

from __future__ import annotations

import hashlib
import threading
import time
from collections.abc import Callable, Collection
from concurrent.futures import Future

import torch
from torch import Tensor

from scoring_service.engine.events import StageWeights
from scoring_service.engine.updates.mapped_tensors import tensor_in
from scoring_service.engine.weight_memory import HEADER_BYTES, MappedMemory, WriterState
from scoring_service.engine.weights.digest import tensor_line
from scoring_service.engine.weights.model_weights import Prepared

_HASH_BYTES = 8 << 20
"""Hashed at a time; the thread looks in between whether it is still wanted."""

_POLL_SECONDS = 0.001


class AbandonedError(Exception):
    """The update is given up: nobody waits for its weights."""


class Staging:
    """What is there of an update."""

    def __init__(self, command: StageWeights) -> None:
        self.command = command
        self.wanted = True
        self.digest = ""
        self.tensors: dict[str, Tensor] = {}
        """Views of the memory, or converted copies."""
        self.thread = threading.Thread()
        self.memory: MappedMemory | None = None
        self.prepared = Prepared()
        self.making: list[Future[None]] = []
        self._ready = 0
        """Bytes of the memory that may be read, its header included."""

    def go_on(self) -> None:
        """Looks whether somebody waits for it still.

        Raises:
            AbandonedError: nobody does.
        """
        if not self.wanted:
            raise AbandonedError

    def read(
        self, memory: MappedMemory, buffers: Collection[str], on_tensor: Callable[[str], None]
    ) -> None:
        """Hashes tensors in the order of names, as far as they are there.

        Args:
            memory: of the update.
            buffers: names of tensors that are copied out of the memory.
            on_tensor: called with the name of each that is there.

        Raises:
            AbandonedError: it will not be written to its end, or nobody waits for it.
        """
        self.memory = memory
        digest = hashlib.sha256()
        with memoryview(memory.map) as view:
            for name, region in self.command.layout.regions.items():
                spec = region.spec
                digest.update(tensor_line(spec))
                if region.dtype != spec.dtype:
                    self._wait(region.offset + region.size)
                    wide = tensor_in(memory.map, region)
                    tensor = wide.to(getattr(torch, spec.dtype)).contiguous()
                    self.tensors[name] = tensor
                    if tensor.numel():
                        digest.update(tensor.flatten().view(torch.uint8).numpy().data)
                    continue
                self.tensors[name] = tensor_in(memory.map, region)
                place, end = region.offset, region.offset + region.size
                while place < end:
                    self._wait(min(end, place + 1))
                    stop = min(end, self._ready, place + _HASH_BYTES)
                    digest.update(view[place:stop])
                    place = stop
                if name in buffers:
                    self.tensors[name] = self.tensors[name].clone()
                on_tensor(name)
            self._wait(self.command.layout.size, complete=True)
        self.digest = digest.hexdigest()

    def _wait(self, place: int, *, complete: bool = False) -> None:
        """Waits until the memory may be read up to `place`, or to its end.

        Raises:
            AbandonedError: it will not be written to its end.
        """
        while self.wanted:
            if self._ready >= place and not complete:
                return
            if self.memory is None:
                raise AbandonedError
            ready, state = self.memory.progress()
            self._ready = HEADER_BYTES + ready
            if state is WriterState.ABANDONED:
                raise AbandonedError
            if state is WriterState.COMPLETE and complete:
                return
            if self._ready < place or complete:
                time.sleep(_POLL_SECONDS)
        raise AbandonedError
