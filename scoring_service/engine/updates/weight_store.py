"""The weights that a worker has: those it loaded, and those of updates."""

from __future__ import annotations

import contextlib
import hashlib
import mmap
import os
import threading
import time
import warnings
from collections.abc import Callable
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor

import torch
from torch import Tensor

from scoring_service.engine.bugs import bug_message, bug_report
from scoring_service.engine.events import (
    LOADED,
    ApplyWeights,
    BugReport,
    FillWeights,
    StageWeights,
    WeightEvent,
    WeightsDropped,
    WeightsFailed,
    WeightsFilled,
    WeightsStaged,
)
from scoring_service.engine.loading.loader import LoadedModel, cache_key
from scoring_service.engine.machine.memory import is_refused_memory
from scoring_service.engine.weight_memory import (
    HEADER_BYTES,
    MappedMemory,
    Region,
    WriterState,
    map_memory,
    map_writable,
)
from scoring_service.engine.weights.digest import tensor_line
from scoring_service.engine.weights.model_weights import ModelWeights, Prepared, copies_on, room_for

_HASH_BYTES = 8 << 20
"""Hashed at a time; the thread looks in between whether it is still wanted."""

_POLL_SECONDS = 0.001

_NICENESS = 5
"""Of threads that stage: a third of a core's time while steps want all of it."""


class _AbandonedError(Exception):
    """The update is given up: nobody waits for its weights."""


class WeightStore:
    """Stages, holds and drops weights; staging has a thread of its own, so that calls go on.

    Args:
        loaded: the model, with the weights it came with.
        send: takes events, from any thread.
    """

    def __init__(
        self, loaded: LoadedModel, send: Callable[[WeightEvent | BugReport], None]
    ) -> None:
        self._model = loaded.model
        self._info = loaded.info
        self._identify = loaded.numerics_id
        self._send = send
        self._step_bytes = 0
        if loaded.packed is not None and loaded.model.device.type == "cuda":
            self._step_bytes = loaded.packed.step_bytes
        self._held: dict[int, ModelWeights] = {}
        if loaded.model.weights is not None:
            self._held[LOADED] = loaded.model.weights
        slots = loaded.model.slots
        self._buffers = frozenset[str]() if slots is None else slots.buffers
        self._staged: dict[int, _Staging] = {}
        self._spare: MappedMemory | None = None
        """Of weights that were dropped: the next ones may come in the same memory."""
        self._fills: dict[int, _Filling] = {}
        self._helper = ThreadPoolExecutor(1, initializer=lower_priority)

    def find(self, weights: int) -> ModelWeights:
        """The weights of that number.

        Raises:
            KeyError: they are not held here.
        """
        return self._held[weights]

    def stage(self, command: StageWeights) -> None:
        """Begins to stage weights."""
        staging = self._staged[command.weights] = _Staging(command)
        staging.thread = threading.Thread(target=self._run, args=(staging,), daemon=True)
        staging.thread.start()

    def fill(self, command: FillWeights) -> None:
        """Begins to write tensors of weights that are held here."""
        source = self._held[command.source]

        filling = self._fills[command.weights] = _Filling()

        def run() -> None:
            try:
                _fill(command, source, filling)
            except _AbandonedError:
                return
            except Exception as error:  # noqa: BLE001 - a thread that only ended would be waited for
                self._tell_failed(command.weights, error)
            else:
                self._send(WeightsFilled(command.weights))

        filling.thread = threading.Thread(target=run, daemon=True)
        filling.thread.start()

    def apply(self, command: ApplyWeights) -> None:
        """Lets go of all weights but these, and prepares them.

        Raises:
            SystemExit: they cannot be; nothing is left to answer with.
        """
        staging = self._staged[command.weights]
        if self._model.slots is None:
            raise SystemExit("the weights of this model cannot be replaced")
        self._model.forget_weights()
        # Nobody is told to drop these any more: what was prepared of them goes with them.
        for number in self._held:
            self._staged.pop(number, None)
            self._fills.pop(number, None)
        self._held.clear()
        if self._model.device.type == "cuda":
            torch.cuda.empty_cache()
        try:
            weights = self._build(staging)
        except (RuntimeError, OSError, MemoryError) as error:
            raise SystemExit(f"weights cannot be written over others: {error}") from error
        self._held[command.weights] = weights
        staging.tensors.clear()
        self._model.use(weights)
        self._tell_staged(staging, usable=True)

    def drop(self, weights: int) -> None:
        """Lets go of weights, staged or not.

        Steps wait for it, and it for threads, which look between tensors whether they are wanted.
        """
        filling = self._fills.pop(weights, None)
        if filling is not None:
            filling.wanted = False
            filling.thread.join()
        staging = self._staged.pop(weights, None)
        if staging is not None:
            staging.wanted = False
            for making in tuple(staging.making):
                making.cancel()
            staging.thread.join()
        dropped = self._held.pop(weights, None)
        if dropped is not None and self._model.weights is dropped and self._held:
            self._model.use(self._held[max(self._held)])
        if dropped is not None and self._model.slots is not None:
            self._model.slots.reclaim(dropped)
        # Giving back hundreds of megabytes takes tens of milliseconds: not between steps.
        memory = None if staging is None else staging.memory
        held: list[object] = [dropped, staging]
        del dropped, staging
        self._helper.submit(self._let_go, weights, held, memory)

    def _let_go(self, weights: int, held: list[object], memory: MappedMemory | None) -> None:
        held.clear()
        if memory is not None and memory.progress()[1] is WriterState.COMPLETE:
            self._spare = memory
        self._send(WeightsDropped(weights))

    def _run(self, staging: _Staging) -> None:
        lower_priority()
        command = staging.command
        try:
            beside = command.beside and self._has_room()
            self._read(staging, prepare=beside)
            usable = beside and self._build_beside(staging)
        except (_AbandonedError, CancelledError):
            return
        except Exception as error:  # noqa: BLE001 - a thread that only ended would be waited for
            self._tell_failed(command.weights, error)
            return
        self._tell_staged(staging, usable=usable)

    def _build_beside(self, staging: _Staging) -> bool:
        """Makes the weights beside others; False if there is no room for that after all.

        Whether there is was asked before the bytes came; steps may have taken it meanwhile.
        """
        try:
            self._held[staging.command.weights] = self._build(staging)
        except (RuntimeError, MemoryError) as error:
            if not is_refused_memory(error):
                raise
        else:
            staging.tensors.clear()
            return True
        # Here, where no error holds what was made any more.
        staging.making.clear()
        staging.prepared = Prepared()
        return False

    def _tell_failed(self, weights: int, error: Exception) -> None:
        if isinstance(error, OSError | RuntimeError | MemoryError):
            message = f"{type(error).__name__}: {error}"
        else:
            self._send(bug_report(error))
            message = bug_message(error)
        self._send(WeightsFailed(weights, message))

    def _tell_staged(self, staging: _Staging, *, usable: bool) -> None:
        digest = staging.digest
        number = staging.command.weights
        self._send(WeightsStaged(number, digest, self._identify(digest), usable))

    def _has_room(self) -> bool:
        slots = self._model.slots
        device = self._model.device
        return slots is not None and room_for(slots.extra_bytes(device), device, self._step_bytes)

    def _read(self, staging: _Staging, *, prepare: bool) -> None:
        """Hashes tensors in the order of names, as far as they are there.

        Args:
            staging: of them.
            prepare: whether to prepare them meanwhile.
        """
        layout = staging.command.layout
        spare, self._spare = self._spare, None
        staging.memory = memory = map_memory(staging.command.path, spare)
        del spare
        view = memoryview(memory.map)
        digest = hashlib.sha256()
        for name, region in layout.regions.items():
            spec = region.spec
            digest.update(tensor_line(spec))
            if region.dtype != spec.dtype:
                _wait(staging, region.offset + region.size)
                tensor = tensor_in(memory.map, region).to(getattr(torch, spec.dtype)).contiguous()
                staging.tensors[name] = tensor
                if tensor.numel():
                    digest.update(tensor.flatten().view(torch.uint8).numpy().data)
                continue
            staging.tensors[name] = tensor_in(memory.map, region)
            end = region.offset + region.size
            place = region.offset
            while place < end:
                _wait(staging, min(end, place + 1))
                stop = min(end, staging.ready, place + _HASH_BYTES)
                digest.update(view[place:stop])
                place = stop
            if name in self._buffers:
                staging.tensors[name] = staging.tensors[name].clone()
            if prepare and self._model.device.type == "cpu":
                self._prepare(staging, name)
        _wait(staging, layout.size, complete=True)
        staging.digest = digest.hexdigest()
        view.release()

    def _prepare(self, staging: _Staging, name: str) -> None:
        """Makes what takes time of a tensor that is there, on another core."""
        slots = self._model.slots
        if slots is not None:
            tensor = staging.tensors[name]
            making = self._helper.submit(slots.prepare, name, tensor, staging.prepared)
            staging.making.append(making)

    def _build(self, staging: _Staging) -> ModelWeights:
        slots = self._model.slots
        if slots is None:
            raise RuntimeError("the weights of this model cannot be replaced")
        device = self._model.device
        digest = staging.digest
        tensors = copies_on(device, staging.tensors, staging.go_on)
        for making in staging.making:
            staging.go_on()
            making.result()
        return slots.build(
            tensors,
            staging.prepared,
            staging.command.version,
            digest,
            self._identify(digest),
            cache_key(digest, self._info.dtype),
            staging.go_on,
        )


def lower_priority() -> None:
    """Lowers this thread's priority: where cores are few steps go first, so calls go on."""
    with contextlib.suppress(OSError):
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _NICENESS)


class _Staging:
    """An update on its way to weights."""

    def __init__(self, command: StageWeights) -> None:
        self.command = command
        self.wanted = True
        self.ready = 0
        """Bytes of the memory that may be read, its header included."""
        self.digest = ""
        self.tensors: dict[str, Tensor] = {}
        """Views of the memory, or converted copies."""
        self.thread = threading.Thread()
        self.memory: MappedMemory | None = None
        self.prepared = Prepared()
        self.making: list[Future[None]] = []

    def go_on(self) -> None:
        """Looks whether somebody waits for it still.

        Raises:
            _AbandonedError: nobody does.
        """
        if not self.wanted:
            raise _AbandonedError


class _Filling:
    """Tensors of older weights on their way into an update's memory."""

    def __init__(self) -> None:
        self.wanted = True
        self.thread = threading.Thread()


def _wait(staging: _Staging, place: int, *, complete: bool = False) -> None:
    """Waits until the memory may be read up to `place`, or to its end.

    Raises:
        _AbandonedError: it will not be written to its end.
    """
    while staging.wanted:
        if staging.ready >= place and not complete:
            return
        if staging.memory is None:
            raise _AbandonedError
        ready, state = staging.memory.progress()
        staging.ready = HEADER_BYTES + ready
        if state is WriterState.ABANDONED:
            raise _AbandonedError
        if state is WriterState.COMPLETE and complete:
            return
        if staging.ready < place or complete:
            time.sleep(_POLL_SECONDS)
    raise _AbandonedError


def tensor_in(memory: mmap.mmap, region: Region) -> Tensor:
    """A tensor that lies in the memory, without a copy."""
    dtype: torch.dtype = getattr(torch, region.dtype)
    count = region.size // dtype.itemsize
    if count == 0:
        return torch.empty(region.spec.shape, dtype=dtype)
    with warnings.catch_warnings():
        # Nothing writes to weights; that the mapping refuses it is what it is for.
        warnings.filterwarnings("ignore", message="The given buffer is not writable")
        flat = torch.frombuffer(memory, dtype=dtype, count=count, offset=region.offset)
    return flat.reshape(region.spec.shape)


def _fill(command: FillWeights, source: ModelWeights, filling: _Filling) -> None:
    memory = map_writable(command.path)
    for name in command.names:
        if not filling.wanted:
            raise _AbandonedError
        region = command.layout.regions[name]
        if region.size:
            tensor_in(memory, region).copy_(source.tensors[name])
