"""The weights that a worker has: those it loaded, and those of updates."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import CancelledError, ThreadPoolExecutor

import torch

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
from scoring_service.engine.updates.filling import Filling
from scoring_service.engine.updates.priority import lower_priority
from scoring_service.engine.updates.staging import AbandonedError, Staging
from scoring_service.engine.weight_memory import MappedMemory, WriterState, map_memory
from scoring_service.engine.weights.model_weights import ModelWeights, Prepared, copies_on, room_for


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
        self._staged: dict[int, Staging] = {}
        self._spare: MappedMemory | None = None
        """Of weights that were dropped: the next ones may come in the same memory."""
        self._fills: dict[int, Filling] = {}
        self._helper = ThreadPoolExecutor(1, initializer=lower_priority)

    def find(self, weights: int) -> ModelWeights:
        """The weights of that number.

        Raises:
            KeyError: they are not held here.
        """
        return self._held[weights]

    def stage(self, command: StageWeights) -> None:
        """Begins to stage weights."""
        staging = self._staged[command.weights] = Staging(command)
        staging.thread = threading.Thread(target=self._run, args=(staging,), daemon=True)
        staging.thread.start()

    def fill(self, command: FillWeights) -> None:
        """Begins to write tensors of weights that are held here."""
        source = self._held[command.source]

        filling = self._fills[command.weights] = Filling()

        def run() -> None:
            try:
                filling.fill(command, source)
            except AbandonedError:
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

    def _run(self, staging: Staging) -> None:
        lower_priority()
        command = staging.command
        try:
            beside = command.beside and self._has_room()
            self._read(staging, prepare=beside)
            usable = beside and self._build_beside(staging)
        except (AbandonedError, CancelledError):
            return
        except Exception as error:  # noqa: BLE001 - a thread that only ended would be waited for
            self._tell_failed(command.weights, error)
            return
        self._tell_staged(staging, usable=usable)

    def _build_beside(self, staging: Staging) -> bool:
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

    def _tell_staged(self, staging: Staging, *, usable: bool) -> None:
        digest = staging.digest
        number = staging.command.weights
        self._send(WeightsStaged(number, digest, self._identify(digest), usable))

    def _has_room(self) -> bool:
        slots = self._model.slots
        device = self._model.device
        return slots is not None and room_for(slots.extra_bytes(device), device, self._step_bytes)

    def _read(self, staging: Staging, *, prepare: bool) -> None:
        """Reads tensors, and on a CPU prepares them meanwhile where that is asked for."""
        memory = self._map(staging.command.path)
        prepares = prepare and self._model.device.type == "cpu"

        def there(name: str) -> None:
            if prepares:
                self._prepare(staging, name)

        staging.read(memory, self._buffers, there)

    def _map(self, path: str) -> MappedMemory:
        """An update's memory; what it did not come in is let go."""
        spare, self._spare = self._spare, None
        return map_memory(path, spare)

    def _prepare(self, staging: Staging, name: str) -> None:
        """Makes what takes time of a tensor that is there, on another core."""
        slots = self._model.slots
        if slots is not None:
            tensor = staging.tensors[name]
            making = self._helper.submit(slots.prepare, name, tensor, staging.prepared)
            staging.making.append(making)

    def _build(self, staging: Staging) -> ModelWeights:
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
