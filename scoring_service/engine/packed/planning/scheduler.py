"""What joins the next step: pure functions over what waits."""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil

from scoring_service.engine.model.context_cost import ContextCost


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
    positions: Sequence[int]
    """Of the first token of each in its sequence."""


MIN_PIECE = 8
"""Tokens that a segment is cut for."""

PIECE_MULTIPLE = 4
"""Of tokens in a piece that is cut for room: on a CPU the products of each number of rows are
compiled and kept, and the middle of a sequence would ask for one number after another."""

Place = tuple[int, int, int, float]
"""Of a call among others, ascending in the order in which they go."""


def place(priority: int, served: float, left: int, deadline: float, turn: int) -> Place:
    """Where a call stands.

    The highest priority goes first, always. Then who had fewer turns: so a large call never starves
    a small one, nor do many small ones a large one. Among those of equal right who is done soonest:
    calls side by side would all end late. Then the earlier deadline.

    Args:
        priority: see `Offer`.
        served: see `Offer`.
        left: see `Offer`.
        deadline: see `Offer`.
        turn: tokens that a call gets before it is the turn of others.
    """
    return -priority, int(served // turn), left, deadline


@dataclass(frozen=True, slots=True)
class Share:
    """What joins a step of one call."""

    tokens: tuple[int, ...]
    """Of each of its leading segments; all of them, but for the last one's if that is cut."""
    cost: int
    """What they take of the budget: as many as they are or, if segments are cut, more."""


def share(
    offers: Sequence[Offer], budget: int, turn: int, cuts: ContextCost | None = None
) -> dict[int, Share]:
    """What of each call joins a step of at most `budget` tokens.

    The call that `place` puts first goes next, one segment at a time. The first segment always
    joins, or as few of its tokens as it may be cut for, because a step that holds nothing would
    never get anywhere; after it, the first segment that does not fit ends the step for its call.

    Args:
        offers: one a call.
        budget: tokens of the step, each at the cost of 1.
        turn: tokens that a call gets before it is the turn of others of its priority.
        cuts: what a token costs, where a segment that does not fit may be cut; None = it may not,
            and each costs 1.

    Returns:
        call id -> its share, for calls that have one.
    """
    parts: dict[int, list[int]] = {}
    paid = dict.fromkeys((offer.call_id for offer in offers), 0.0)
    by_id = {offer.call_id: offer for offer in offers if offer.sizes}
    # Whoever is served changes places, nobody else does.
    waiting = [(_place_after(offer, 0, turn), offer.call_id) for offer in by_id.values()]
    heapq.heapify(waiting)
    left = float(budget)
    while waiting and (left > 0 or not parts):
        _, call_id = heapq.heappop(waiting)
        offer, own = by_id[call_id], parts.get(call_id, [])
        size = offer.sizes[len(own)]
        cost = cuts.at(offer.positions[len(own)]) if cuts else 1.0
        if size * cost > left:
            room = round(left / cost)
            if cuts and (piece := _piece(size, room if parts else max(room, MIN_PIECE))):
                size = piece
            elif parts:
                continue
        left -= size * cost
        paid[call_id] += size * cost
        parts[call_id] = [*own, size]
        if size == offer.sizes[len(own)] and len(own) + 1 < len(offer.sizes):
            place_now = _place_after(offer, sum(parts[call_id]), turn)
            heapq.heappush(waiting, (place_now, call_id))
    return {call_id: Share(tuple(own), ceil(paid[call_id])) for call_id, own in parts.items()}


def _piece(size: int, room: int) -> int:
    """Leading tokens of a segment that fit; 0 where they are too few to be worth it.

    Never all but one: a single token is computed in another way, with other bits.
    """
    piece = min(room - room % PIECE_MULTIPLE, size - 2)
    return piece if piece >= MIN_PIECE else 0


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


@dataclass(slots=True)
class StepTokens:
    """Tokens of a step while it is filled, from the most urgent down."""

    most: int
    """That it may hold."""
    beside_decoding: int
    """As of `prefill_budget`."""
    rows: int = 0
    """Of samples that go on."""
    joined: int = 0
    """Of scoring and prompts, and of samples that catch up beside others; by what they cost."""

    @property
    def left(self) -> int:
        """Nobody has these yet."""
        return max(0, self.most - self.rows - self.joined)

    def for_samples(self) -> int:
        """How many samples of the next priority may take.

        One is left to scoring and prompts: with as many samples as tokens they would starve.
        """
        return max(0, self.left - 1)

    def for_prefill(self, samples_below: int) -> int:
        """How many scoring and prompts may take that no sample below is more urgent than.

        Args:
            samples_below: samples of lower priority, which take what is left. They do not shorten
                the step, and many of them make it long in any case.
        """
        many = max(self.beside_decoding, self.rows + samples_below)
        return max(0, prefill_budget(self.most, self.rows, many) - self.joined)
