"""How much may wait: a queue bounded in tokens and reply bytes, shared among clients."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from operator import attrgetter

from scoring_service.errors import ServiceError, queue_full
from scoring_service.pool.admission.throughput import Mark, Throughput

SHARE = 16
"""A client may take so many times what it leaves free: alone 16/17 of the queue, two of them 16/33
each, so that there is always room for one more. This is the dynamic threshold of Choudhury and
Hahne ("Dynamic queue length thresholds for shared-memory packet switches", 1998)."""

_CERTAINTY = 1.5
"""Waits that are so many times as long as its deadline allows have a call refused: what waits is
another mixture than what was measured, and a call that is let in in vain costs nothing."""


@dataclass(slots=True)
class Ticket:
    """What an admitted call takes of the queue."""

    call_id: int
    client: str
    priority: int
    tokens: int
    """Tokens that are not answered yet."""
    reply_bytes: int
    room: int = 0
    """Tokens of the queue that it takes until it is over."""

    @property
    def place(self) -> tuple[int, int]:
        """Order of calls, whoever sent them."""
        return -self.priority, self.call_id


class Admission:
    """Counts what admitted calls take.

    A call takes its room until it is over, however much of it was answered. Calls take turns, so
    if answers made room, calls that have little left would pile up, each slowing down all others:
    at ten times the load the queue can do, calls took three times as long as at full load. So the
    number of calls that share the workers is bounded, and with it the time that they take.
    """

    def __init__(
        self,
        max_tokens: int,
        max_reply_bytes: int,
        running: Callable[[], int],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Begins with an empty queue.

        Args:
            max_tokens: of the queue.
            max_reply_bytes: of the answers that it may amount to.
            running: gives the tokens of the parts that workers have.
            clock: of deadlines and of the measured rate, in seconds.
        """
        self.throughput = Throughput(running, clock)
        self.turn_tokens = 4096
        """Tokens that a call takes in one turn, at most."""
        self.tokens = 0
        """Tokens of admitted calls that are not answered yet."""
        self.taken = 0
        """Tokens of the queue's room that admitted calls take."""
        self.reply_bytes = 0
        self._max_tokens = max_tokens
        self._max_reply_bytes = max_reply_bytes
        self._running = running
        self._clock = clock
        self._tickets: dict[int, Ticket] = {}
        self._by_client: dict[str, int] = {}

    def admit(self, ticket: Ticket, deadline: float) -> None:
        """Lets a call in.

        No call takes more than half of the queue: one that is larger could otherwise never be let
        in, and would keep everybody else out for as long as it takes.

        Raises:
            ServiceError: QUEUE_FULL, with the time after which there should be room.
        """
        ticket.room = min(ticket.tokens, self._most_room)
        if self._tickets:
            self._check_room(ticket.client, ticket.room)
            self._check_reply(ticket.reply_bytes)
            self._check_deadline(ticket, deadline)
        self._tickets[ticket.call_id] = ticket
        self._take(ticket.client, ticket.room)
        self.tokens += ticket.tokens
        self.reply_bytes += ticket.reply_bytes
        self.throughput.busy(True)

    def room(self, client: str) -> float:
        """Tokens of the largest call that a client would be let in with now."""
        free = self._max_tokens - self.taken
        largest = min(free, (SHARE * free - self._by_client.get(client, 0)) // (SHARE + 1))
        return largest if self._tickets and largest < self._most_room else math.inf

    def check_room(self, client: str, tokens: int = 1) -> None:
        """Refuses a call before it is read, for which there is no room.

        Args:
            client: whose it is.
            tokens: that it has at least.

        Raises:
            ServiceError: QUEUE_FULL.
        """
        if self._tickets:
            self._check_room(client, min(tokens, self._most_room))

    def finished(self, call_id: int, tokens: int, sent: Mark) -> None:
        """A part of so many tokens of a call was computed; see `Throughput.finished`."""
        ticket = self._tickets.get(call_id)
        if ticket is not None:
            done = min(tokens, ticket.tokens)
            ticket.tokens -= done
            self.tokens -= done
            self.throughput.finished(tokens, sent)

    def release(self, call_id: int) -> None:
        """The call is over."""
        ticket = self._tickets.pop(call_id, None)
        if ticket is not None:
            self._take(ticket.client, -ticket.room)
            self.tokens -= ticket.tokens
            self.reply_bytes -= ticket.reply_bytes
            if not self._tickets:
                self.throughput.busy(False)

    def tokens_ahead(self, call_id: int) -> int:
        """Tokens of the calls that go before this one and are not computed yet."""
        own = self._tickets.get(call_id)
        place = (0, call_id) if own is None else own.place
        return sum(t.tokens for t in self._tickets.values() if t.place < place)

    @property
    def _most_room(self) -> int:
        """That a call takes of the queue, however large it is."""
        return max(1, self._max_tokens // 2)

    @property
    def calls(self) -> int:
        """Admitted and not over."""
        return len(self._tickets)

    def _take(self, client: str, room: int) -> None:
        self.taken += room
        held = self._by_client.get(client, 0) + room
        if held:
            self._by_client[client] = held
        else:
            self._by_client.pop(client, None)

    def _check_room(self, client: str, room: int) -> None:
        own = self._by_client.get(client, 0)
        over_all = self.taken + room - self._max_tokens
        # What has to end until the share, which grows meanwhile, covers what is left of it.
        over_share = (own + room + SHARE * over_all) / (SHARE + 1)
        if over_all <= 0 and over_share <= 0:
            return
        whose = "" if over_all > 0 else f", {own} of them by this client"
        message = (
            f"{self.taken} tokens of the queue are taken{whose}, and this call has {room} or more; "
            f"at most {self._max_tokens} may be"
        )
        raise ServiceError(queue_full(message, self._seconds_until_free(max(over_all, over_share))))

    def _check_reply(self, reply_bytes: int) -> None:
        over = self.reply_bytes + reply_bytes - self._max_reply_bytes
        if self.reply_bytes and over > 0:
            message = (
                f"answers of {self.reply_bytes} bytes are under way, and this one has about "
                f"{reply_bytes}; at most {self._max_reply_bytes} may be"
            )
            part = min(1.0, over / self.reply_bytes)
            raise ServiceError(queue_full(message, self._seconds_until_free(part * self.taken)))

    def _check_deadline(self, ticket: Ticket, deadline: float) -> None:
        """Refuses what could not even start in time, before it costs anything.

        What workers have may be all but computed, and they may be as fast as can be: in doubt a
        call is let in, and ends unbegun when its deadline passes.
        """
        left = deadline - self._clock()
        if left == math.inf or not self.throughput.pressed:
            return  # without a deadline, or with room for it in a worker
        ahead = max(0, self._tokens_before_start(ticket) - self._running())
        if ahead / self.throughput.most > _CERTAINTY * left:
            wait = ahead / self.throughput.rate
            message = (
                f"the call would start in about {wait:.1f} s, after its deadline in {left:.1f} s"
            )
            raise ServiceError(queue_full(message, wait - left))

    def _seconds_until_free(self, room: float) -> float:
        return self._tokens_until_free(room) / self.throughput.rate

    def _tokens_until_free(self, room: float) -> int:
        """Tokens that are computed until calls that take so much room are over.

        Calls take turns: the one that has least left ends first, and until then each of the others
        computes as much.
        """
        left = len(self._tickets)
        computed = level = freed = 0
        for ticket in sorted(self._tickets.values(), key=attrgetter("tokens")):
            computed += (ticket.tokens - level) * left
            level, left = ticket.tokens, left - 1
            freed += ticket.room
            if freed >= room:
                break
        return computed

    def _tokens_before_start(self, ticket: Ticket) -> int:
        """Tokens that are computed before a newcomer's turn.

        Clients take turns, and so do a client's calls: a newcomer waits for a turn of each call of
        its client, and meanwhile for as much of every other client, if that has as much.
        """
        turns: dict[str, int] = {}
        for other in self._tickets.values():
            if other.priority >= ticket.priority:
                turn = min(other.tokens, self.turn_tokens)
                turns[other.client] = turns.get(other.client, 0) + turn
        own = turns.pop(ticket.client, 0)
        return own + sum(min(own, theirs) for theirs in turns.values())
