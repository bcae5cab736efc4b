"""Reads a checkpoint into an update's memory: `python -m scoring_service.engine.checkpoint`.

A process of its own, because loading a model changes torch's global settings for a while and takes
the interpreter's lock for seconds, which the calls of a worker would notice. The job comes pickled
from the server on standard input; what is wrong goes to standard output, nothing if all is well.
"""

from __future__ import annotations

import os
import pickle
import sys

import torch

from scoring_service.engine.network import load_network
from scoring_service.engine.weight_memory import Layout, map_writable
from scoring_service.engine.weight_store import tensor_in
from scoring_service.errors import ConfigurationError
from scoring_service.types import EngineConfig, TensorSpec


def fill(
    config: EngineConfig, specs: tuple[TensorSpec, ...], layout: Layout, path: str
) -> str | None:
    """Loads the model and copies its tensors; what is wrong with them, or None."""
    try:
        network = load_network(config, torch.device("cpu"))
    except ConfigurationError as error:
        return str(error)
    state: dict[str, torch.Tensor] = network.state_dict()
    if difference := _difference(specs, state):
        return f"the files hold another model: {difference}"
    memory = map_writable(path)
    for name, region in layout.regions.items():
        if region.size:
            tensor_in(memory, region).copy_(state[name])
    for spec in specs:
        # The server's model shares these; files that tell them apart are another model's.
        if spec.tied_to and not torch.equal(state[spec.name], state[spec.tied_to]):
            return f"the files hold another model: {spec.name} is not tied to {spec.tied_to}"
    return None


def _difference(specs: tuple[TensorSpec, ...], state: dict[str, torch.Tensor]) -> str:
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
    return ""


def main() -> None:
    """Entry point of the process."""
    # Whatever libraries print goes to standard error: standard output is for the answer.
    answer = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    problem = fill(*pickle.load(sys.stdin.buffer))
    answer.write(problem or "")
    answer.close()


if __name__ == "__main__":
    main()
