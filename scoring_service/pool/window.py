"""How much a worker is given at once: enough to keep its steps full, and no more."""

from __future__ import annotations

from scoring_service.pool.stream import Part
from scoring_service.pool.worker import Worker

STEPS = 8
"""Steps' worth of tokens that a worker may have."""

MOST_SAMPLES = 256
"""Samples that a worker may have, as many as its engine draws at once."""

MOST_REPLY_BYTES = 64 << 20
"""Results that a worker may have on their way."""


def fits(part: Part, worker: Worker, priority: int, batch_tokens: int) -> bool:
    """Whether a worker may be given one more part.

    An idle worker takes anything. What is more urgent than everything that a busy one has does not
    wait for it: the engine puts it first.

    Args:
        part: to be computed.
        worker: that may do it.
        priority: of the part's call.
        batch_tokens: of one step.
    """
    if not worker.parts:
        return True
    if all(other.call.priority < priority for other in worker.parts.values()):
        return True
    return (
        worker.load + part.size.load <= STEPS * batch_tokens
        and worker.samples + part.size.samples <= MOST_SAMPLES
        and worker.reply_bytes + part.credit <= MOST_REPLY_BYTES
    )
