"""Who does the work: this project in layers, and its peers. One file each, imported on demand."""

from __future__ import annotations

from dataclasses import dataclass, replace
from importlib import import_module
from typing import Protocol

from benchmarks.outcome import Outcome
from benchmarks.workloads import Work


@dataclass(frozen=True)
class SideConfig:
    """How a side loads its model."""

    model: str
    """Folder in the Hugging Face layout."""
    dtype: str
    head_dtype: str
    device: str = "cpu"
    memory_utilization: float | None = None
    """What the engine takes of the device's memory; None = its default."""
    residual_dtype: str = "auto"
    """Of this service's body."""
    cuda_graphs: str = "auto"
    """Of the engine: "off" launches each kernel of a step by itself."""


class Side(Protocol):
    """Loads a model once, then runs workloads."""

    version: str
    """Of the software that does the work."""
    pids: dict[str, int]
    """Name -> process whose memory and processor time are counted; empty = the side's own."""
    backend: dict[str, str]
    """What answers: `backend` and `path_reason` of this service; empty = a peer."""

    def run(self, work: Work) -> Outcome:
        """Does the work once.

        Raises:
            NotImplementedError: this side cannot do such work; the table says so.
        """
        ...

    def close(self) -> None:
        """Ends what it started."""
        ...


_MODULES = {
    "bare": "benchmarks.sides.bare",
    "packed-forward": "benchmarks.sides.packed_forward",
    "engine": "benchmarks.sides.engine",
    "engine-eager": "benchmarks.sides.engine_eager",
    "service": "benchmarks.sides.service",
    "transformers-padded": "benchmarks.peers.transformers_padded",
    "transformers-single": "benchmarks.peers.transformers_single",
    "vllm-cpu": "benchmarks.peers.vllm_cpu",
    "lm-eval": "benchmarks.peers.lm_eval_hf",
}

IN_PEERS_ENVIRONMENT = frozenset({"vllm-cpu", "lm-eval"})
"""Sides that run with the interpreter of build/peers."""

SIDES = tuple(_MODULES)


def make_side(name: str, config: SideConfig) -> Side:
    """The side of that name, loaded.

    `service@float32` is `service` with a head in float32, `service+float32` with residuals in it.
    """
    name, _, residual_dtype = name.partition("+")
    name, _, head_dtype = name.partition("@")
    config = replace(
        config,
        head_dtype=head_dtype or config.head_dtype,
        residual_dtype=residual_dtype or config.residual_dtype,
    )
    return import_module(_MODULES[name]).make(config)
