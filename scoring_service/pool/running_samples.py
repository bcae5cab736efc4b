"""What becomes of samples that are being drawn when the weights change."""

from __future__ import annotations

from collections.abc import Iterator

from scoring_service.engine.events import ItemFailed
from scoring_service.errors import Fault, Reason
from scoring_service.pool.stream import Part
from scoring_service.types import SampleCall


def unfinished(part: Part) -> Iterator[ItemFailed]:
    """The ends of a part's samples that are not over, as an update that aborts them has it."""
    if not isinstance(part.call, SampleCall):
        return
    message = "the weights were replaced, and running samples aborted"
    fault = Fault(Reason.WEIGHTS_REPLACED, message)
    for task in part.call.prompts:
        if task.index in part.delivered.failed:
            continue
        for index in task.sample_indices:
            if (task.index, index) not in part.delivered.ended:
                yield ItemFailed(part.stream.call.call_id, task.index, index, fault)
