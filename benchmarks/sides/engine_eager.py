"""The engine without CUDA graphs: what they are worth where samples are drawn."""

from __future__ import annotations

from dataclasses import replace

from benchmarks.outcome import Outcome
from benchmarks.sides import SideConfig
from benchmarks.sides.engine import Engine
from benchmarks.workloads import Sampling, Work


class EagerEngine(Engine):
    """Draws samples alone: scoring has no step that is recorded."""

    def run(self, work: Work) -> Outcome:
        """Does the work."""
        if not isinstance(work, Sampling):
            raise NotImplementedError
        return super().run(work)


def make(config: SideConfig) -> EagerEngine:
    """Loads it."""
    return EagerEngine(replace(config, cuda_graphs="off"))
