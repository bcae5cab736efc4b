"""Which worker is given a part: how much one takes at once, and who is done with it first."""

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
    if not worker.load:
        return True
    if all(other.call.priority < priority for other in worker.parts.values()):
        return True
    return (
        worker.load + part.size.load <= STEPS * batch_tokens
        and worker.samples + part.size.samples <= MOST_SAMPLES
        and worker.reply_bytes + part.credit <= MOST_REPLY_BYTES
    )


def cost(part: Part, worker: Worker, chunk_size: int) -> tuple[bool, int, int, int]:
    """What a worker has to do before a part is done: what waits there, less what it has already."""
    held = chunk_size * worker.prefixes.held(part.keys)
    avoided = worker.index == part.stream.avoid
    return avoided, worker.load - held, len(worker.parts), worker.index
