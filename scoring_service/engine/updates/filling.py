"""Tensors of older weights on their way into an update's memory: what a trainer leaves out."""

from __future__ import annotations

import threading

from scoring_service.engine.events import FillWeights
from scoring_service.engine.updates.mapped_tensors import tensor_in
from scoring_service.engine.updates.staging import AbandonedError
from scoring_service.engine.weight_memory import map_writable
from scoring_service.engine.weights.model_weights import ModelWeights


class Filling:
    """A thread that fills, and whether it is wanted still."""

    def __init__(self) -> None:
        self.wanted = True
        self.thread = threading.Thread()

    def fill(self, command: FillWeights, source: ModelWeights) -> None:
        """Writes the tensors.

        Raises:
            AbandonedError: nobody waits for them any more.
        """
        memory = map_writable(command.path)
        for name in command.names:
            if not self.wanted:
                raise AbandonedError
            region = command.layout.regions[name]
            if region.size:
                tensor_in(memory, region).copy_(source.tensors[name])
