"""Which worker is given a part: how much one takes at once, and who is done with it first."""

from __future__ import annotations

from scoring_service.engine.machine.page_budget import MAX_SAMPLES
from scoring_service.pool.streams.stream import Part
from scoring_service.pool.workers.worker import Worker
from scoring_service.pool.workers.workload import Taken

STEPS = 8
"""Steps' worth of tokens that a worker may have."""

MAX_REPLY_BYTES = 64 << 20
"""Results that a worker may have on their way."""


def has_room(part: Part, worker: Worker, batch_tokens: int) -> bool:
    """Whether a worker may be given one more part, as far as tokens and results are concerned.

    An idle worker takes anything. What a part is more urgent than does not count: the engine puts
    it behind.

    Args:
        part: to be computed.
        worker: that may do it.
        batch_tokens: of one step.
    """
    taken = worker.work.from_priority(part.call.priority)
    return taken == Taken() or (
        taken.load + part.size.load <= STEPS * batch_tokens
        and taken.reply_bytes + part.reply_bytes <= MAX_REPLY_BYTES
    )


def has_slots(part: Part, worker: Worker) -> bool:
    """Whether a worker may be given one more part, as far as its samples are concerned.

    A worker may have as many as its engine draws at once, beyond the first ones of each call.

    A call of which nothing runs waits for no samples of others: the engine shares what it draws
    among the calls that it has (see `engine.packed.sample_slots`), and a sample that waits there
    takes nothing but its prompt.
    """
    if not part.size.samples or not part.stream.running:
        return True
    taken = worker.work.from_priority(part.call.priority)
    return taken.samples + part.size.samples <= MAX_SAMPLES


def cost(part: Part, worker: Worker, chunk_size: int) -> tuple[bool, int, int, int]:
    """What a worker has to do before a part is done: what waits there, less what it has already."""
    held = chunk_size * worker.prefixes.held(part.keys)
    avoided = worker.index == part.stream.avoid
    return avoided, worker.work.all.load - held, len(worker.parts), worker.index
