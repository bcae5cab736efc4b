"""What joins the next step: pure functions over what waits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Offer:
    """What one call could compute next."""

    call_id: int
    priority: int
    """The higher goes first, always."""
    served: float
    """Tokens computed for the call so far, beyond what newcomers are credited with."""
    deadline: float
    """When its caller stops waiting; infinity = never."""
    sizes: Sequence[int]
    """Tokens of its next segments, in the order in which they must run."""


def share(offers: Sequence[Offer], budget: int) -> dict[int, int]:
    """How many segments of each call join a step of at most `budget` tokens.

    Of the highest priority that has work, the call that was served least goes next, one segment at
    a time, the earlier deadline first among equals: so a large call never starves a small one. A
    segment is never cut. The first segment always joins, whatever its size, because a step that
    holds nothing would never get anywhere; after it, the first segment that does not fit ends the
    step for its call.

    Returns:
        call id -> number of its leading segments, for calls with at least one.
    """
    taken: dict[int, int] = {}
    served = {offer.call_id: offer.served for offer in offers}
    open_offers = {offer.call_id: offer for offer in offers if offer.sizes}
    left = budget
    while open_offers:
        offer = min(
            open_offers.values(),
            key=lambda o: (-o.priority, served[o.call_id], o.deadline, o.call_id),
        )
        place = taken.get(offer.call_id, 0)
        size = offer.sizes[place]
        if size > left and (size == 0 or left < budget):
            del open_offers[offer.call_id]
            continue
        taken[offer.call_id] = place + 1
        served[offer.call_id] += size
        left -= size
        if place + 1 == len(offer.sizes):
            del open_offers[offer.call_id]
    return taken


def prefill_budget(budget: int, decode_rows: int, beside_decoding: int) -> int:
    """Tokens that scoring and prompts may take of a step.

    While samples are drawn a step is kept short, because each of them waits for all of it: about
    twice as long as one that draws alone.

    Args:
        budget: tokens of a step.
        decode_rows: tokens that samples take of it.
        beside_decoding: tokens that may join few samples; many are joined by as many as they are.
    """
    if decode_rows == 0:
        return budget
    return max(0, min(max(beside_decoding, decode_rows), budget - decode_rows))
