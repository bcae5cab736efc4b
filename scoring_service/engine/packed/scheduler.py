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
    left: int
    """Tokens of it that no step has begun, at most: what a cache has counts as well."""
    deadline: float
    """When its caller stops waiting; infinity = never."""
    sizes: Sequence[int]
    """Tokens of its next segments, in the order in which they must run."""


LEAST_PIECE = 8
"""Tokens that a segment is cut for."""

Place = tuple[int, int, int, float]
"""Of a call among others, ascending in the order in which they go."""


def place(priority: int, served: float, left: int, deadline: float, turn: int) -> Place:
    """Where a call stands.

    The highest priority goes first, always. Then who had fewer turns: so a large call never starves
    a small one, nor do many small ones a large one. Among those of equal right who is done soonest:
    calls side by side would all end late. Then the earlier deadline.

    Args:
        priority: see `Offer`, as of the others.
        served: likewise.
        left: likewise.
        deadline: likewise.
        turn: tokens that a call gets before it is the turn of others.
    """
    return -priority, int(served // turn), left, deadline


@dataclass(frozen=True, slots=True)
class Share:
    """What joins a step of one call."""

    tokens: tuple[int, ...]
    """Of each of its leading segments; all of them, but for the last one's if that is cut."""


def share(offers: Sequence[Offer], budget: int, turn: int, cuts: bool = False) -> dict[int, Share]:
    """What of each call joins a step of at most `budget` tokens.

    The call that `place` puts first goes next, one segment at a time. The first segment always
    joins, whatever its size, because a step that holds nothing would never get anywhere; after it,
    the first segment that does not fit ends the step for its call.

    Args:
        offers: one a call.
        budget: tokens of the step.
        turn: tokens that a call gets before it is the turn of others of its priority.
        cuts: whether a segment that does not fit may be cut.

    Returns:
        call id -> its share, for calls that have one.
    """
    taken: dict[int, list[int]] = {}
    tokens = dict.fromkeys((offer.call_id for offer in offers), 0)
    open_offers = {offer.call_id: offer for offer in offers if offer.sizes}
    left = budget
    while open_offers:
        offer = min(
            open_offers.values(),
            key=lambda o: (_place_after(o, tokens[o.call_id], turn), o.call_id),
        )
        parts = taken.get(offer.call_id, [])
        size = offer.sizes[len(parts)]
        if size > left and cuts and (piece := _piece(size, left)):
            taken[offer.call_id] = [*parts, piece]
            left -= piece
            del open_offers[offer.call_id]
            continue
        if size > left and (size == 0 or left < budget):
            del open_offers[offer.call_id]
            continue
        taken[offer.call_id] = [*parts, size]
        tokens[offer.call_id] += size
        left -= size
        if len(parts) + 1 == len(offer.sizes):
            del open_offers[offer.call_id]
    return {call_id: Share(tuple(parts)) for call_id, parts in taken.items()}


def _piece(size: int, room: int) -> int:
    """Leading tokens of a segment that fit; 0 where they are too few to be worth it.

    Never all but one: a single token is computed in another way, with other bits.
    """
    piece = min(room, size - 2)
    return piece if piece >= LEAST_PIECE else 0


def _place_after(offer: Offer, tokens: int, turn: int) -> Place:
    """Where a call stands once it got so many tokens of the step."""
    served, left = offer.served + tokens, offer.left - tokens
    return place(offer.priority, served, left, offer.deadline, turn)


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
