"""Reads a checkpoint into an update's memory: `python -m` and this module's name.

A process of its own, because loading a model changes torch's global settings for a while and takes
the interpreter's lock for seconds, which the calls of a worker would notice. The job comes pickled
from the server on standard input; what is wrong goes to standard output, a line with the reason and
then a message, nothing if all is well.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import pickle
import signal
import sys
from pathlib import Path
from typing import Any

import torch

from scoring_service.engine.files.model_settings import model_settings, settings_difference
from scoring_service.engine.files.network import load_network
from scoring_service.engine.machine.host_memory import free_host_memory
from scoring_service.engine.machine.memory import is_refused_memory
from scoring_service.engine.updates.checkpoint_memory import loading_bytes
from scoring_service.engine.updates.mapped_tensors import tensor_in
from scoring_service.engine.updates.priority import lower_priority
from scoring_service.engine.weight_memory import (
    HEADER_BYTES,
    Layout,
    map_writable,
    publish_ready,
)
from scoring_service.errors import ConfigurationError, Fault, Reason
from scoring_service.types import EngineConfig, TensorSpec

_PR_SET_PDEATHSIG = 1
"""Of Linux's prctl: the signal that a process gets when its parent has died, however."""

_SPARE = 1.1
"""A model is loaded if so many times what that takes is free."""


def fill(
    config: EngineConfig,
    specs: tuple[TensorSpec, ...],
    settings: dict[str, Any],
    layout: Layout,
    path: str,
) -> Fault | None:
    """Loads the model and moves its tensors; what is wrong with them, or None.

    Args:
        config: names the files.
        specs: of the server's model.
        settings: of its config, as `EngineInfo` has them.
        layout: of the memory.
        path: of the memory.
    """
    needed, free = loading_bytes(config.model, specs, layout), free_host_memory()
    if needed * _SPARE > free:
        message = f"to load the files takes {needed >> 20} MiB, and {free >> 20} MiB are free"
        return Fault(Reason.OUT_OF_MEMORY, message)
    try:
        network = load_network(config, torch.device("cpu"))
    except ConfigurationError as error:
        refused = error.__cause__ is not None and is_refused_memory(error.__cause__)
        reason = Reason.OUT_OF_MEMORY if refused else Reason.WEIGHTS_UNREADABLE
        return Fault(reason, str(error))
    state: dict[str, torch.Tensor] = network.state_dict(keep_vars=True)
    own_settings = model_settings(network.config)
    if difference := _difference(specs, state) or settings_difference(settings, own_settings):
        message = f"the files hold another model: {difference}"
        return Fault(Reason.WEIGHTS_UNREADABLE, message)
    memory = map_writable(path)
    # Files may tie what the server's model does not: one tensor under several names.
    last_names = {id(state[name]): name for name in layout.regions}
    for name, region in layout.regions.items():
        tensor = state[name]
        if region.size:
            tensor_in(memory, region).copy_(tensor)
            if last_names[id(tensor)] == name:
                # The model and the memory need not be there in full side by side.
                tensor.data = tensor.new_empty(0)
        publish_ready(memory, region.offset + region.size - HEADER_BYTES)
    return None


def _difference(specs: tuple[TensorSpec, ...], state: dict[str, torch.Tensor]) -> str:
    """What of the files is not as the server's model has it; empty if all is."""
    names = {spec.name for spec in specs}
    if odd := sorted(names.symmetric_difference(state)):
        return f"tensor {odd[0]} is in one of the two only"
    for spec in specs:
        tensor = state[spec.name]
        found = str(tensor.dtype).removeprefix("torch."), tuple(tensor.shape)
        if found != (spec.dtype, spec.shape):
            return (
                f"{spec.name} is {found[0]} {list(found[1])}, not {spec.dtype} {list(spec.shape)}"
            )
        # The server's model shares these; files that tell them apart are another model's.
        if spec.tied_to and not torch.equal(tensor, state[spec.tied_to]):
            return f"{spec.name} is not tied to {spec.tied_to}"
    return ""


def main() -> None:
    """Entry point of the process."""
    # Whatever libraries print goes to standard error: standard output is for the answer.
    answer = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    # Before standard input is read, whose end tells of a server that was gone by then.
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    lower_priority()
    with contextlib.suppress(OSError):
        # If memory runs out all the same, this process is the one to do without.
        Path("/proc/self/oom_score_adj").write_text("1000")
    fault = fill(*pickle.load(sys.stdin.buffer))
    if fault is not None:
        answer.write(f"{fault.reason}\n{fault.message}")
    answer.close()


if __name__ == "__main__":
    main()
