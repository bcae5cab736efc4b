"""The queue's bounds, each client's share of them, and when to come back."""

from __future__ import annotations

import math
import random
from typing import Any

import pytest

from scoring_service.errors import Reason, ServiceError
from scoring_service.pool.admission.admission import Admission, Ticket


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def queue(most: int = 1000, reply: int = 10**9) -> tuple[Admission, Clock]:
    """A queue whose workers have all that they can take, and clock."""
    clock = Clock()
    admission = Admission(most, reply, lambda: 0, clock)
    admission.throughput.press(True)
    return admission, clock


def admit(
    queue: Admission,
    call_id: int,
    tokens: int,
    client: str = "a",
    *,
    priority: int = 0,
    reply: int = 0,
    deadline: float = math.inf,
) -> None:
    queue.admit(Ticket(call_id, client, priority, tokens, reply), deadline)


def finish(queue: Admission, call_id: int, tokens: int) -> None:
    queue.finished(call_id, tokens, sent=(0.0, 0.0))


def refusal(queue: Admission, call_id: int, tokens: int, client: str = "a", **fields: Any) -> float:
    """RetryInfo of a call that must be refused."""
    with pytest.raises(ServiceError) as refused:
        admit(queue, call_id, tokens, client, **fields)
    assert refused.value.fault.reason is Reason.QUEUE_FULL
    assert refused.value.fault.retry_after is not None
    return refused.value.fault.retry_after


def test_a_call_larger_than_the_queue_takes_half_of_it() -> None:
    admission, _ = queue(1000)
    admit(admission, 1, 5000)
    admit(admission, 2, 400, client="b")
    refusal(admission, 3, 5000, client="c")
    admission.release(2)
    refusal(admission, 4, 5000)
    admission.release(1)
    admit(admission, 5, 1, client="b")
    admit(admission, 6, 5000, client="c")


def test_the_bound_holds_whatever_comes_and_goes() -> None:
    """Against plain sums over what was admitted."""
    rng = random.Random(7)
    admission, _ = queue(1000)
    held: dict[int, int] = {}
    left: dict[int, int] = {}
    for call_id in range(3000):
        tokens = rng.randint(1, 300)
        try:
            admit(admission, call_id, tokens, client=rng.choice("abc"))
            held[call_id] = left[call_id] = tokens
        except ServiceError:
            assert sum(held.values()) + tokens > 1000 * 0.48, "refused with room for everybody"
        while held and rng.random() < 0.4:
            done = rng.choice(list(held))
            if rng.random() < 0.5:
                part = rng.randint(0, left[done])
                finish(admission, done, part)
                left[done] -= part
            else:
                admission.release(done)
                del held[done], left[done]
        assert admission.taken == sum(held.values()) <= 1000
        assert admission.tokens == sum(left.values())
    for call_id in held:
        admission.release(call_id)
    assert admission.tokens == admission.taken == 0
    admit(admission, 9999, 10**6)


def test_answers_make_no_room_before_the_call_is_over() -> None:
    """Else calls that are nearly done would share the workers with ever more others."""
    admission, clock = queue(1000)
    in_progress = 0
    for call_id in range(100):
        try:
            admit(admission, call_id, 100)
        except ServiceError:
            break
        clock.now += 1.0
        finish(admission, call_id, 99)
        in_progress += 1
    assert in_progress == 9
    admission.release(0)
    admit(admission, 200, 100)


def flood(admission: Admission) -> None:
    for call_id in range(1000):
        try:
            admit(admission, call_id, 10, client="flood")
        except ServiceError:
            return
    raise AssertionError("nothing stops it")


def test_a_client_that_floods_leaves_room_for_others() -> None:
    admission, _ = queue(1000)
    flood(admission)
    assert 930 <= admission.tokens <= 950, "16/17"
    for call_id in range(10_000, 10_002):
        admit(admission, call_id, 10, client="light")
    admission.check_room("third")
    with pytest.raises(ServiceError):
        admission.check_room("flood")


def test_the_time_to_retry_follows_the_measured_rate() -> None:
    admission, clock = queue(1000)
    admit(admission, 1, 450)
    for _ in range(4):
        clock.now += 1.0
        finish(admission, 1, 50)
    assert admission.throughput.rate == pytest.approx(50.0, rel=1e-6)
    # More than its share: until its call that has 250 left is over.
    assert refusal(admission, 2, 500) == pytest.approx(250 / 50.0, rel=0.01)
    admit(admission, 3, 300, client="b")
    # The first to end is still the same, and meanwhile the other computes as much.
    assert refusal(admission, 4, 350, client="c") == pytest.approx(500 / 50.0, rel=0.01)
    admit(admission, 5, 100, client="c")
    # 100 tokens of each of three, which is not enough, and 150 of each of two.
    assert refusal(admission, 6, 500, client="d") == pytest.approx(600 / 50.0, rel=0.01)


@pytest.mark.parametrize("seed", range(5))
def test_the_time_to_retry_against_turns_one_token_each(seed: int) -> None:
    rng = random.Random(seed)
    admission, clock = queue(10**6)
    admit(admission, 0, 100)
    clock.now += 100.0
    finish(admission, 0, 100)
    admission.release(0)
    left = {call_id: rng.randint(1, 60) for call_id in range(1, 12)}
    room = {call_id: rng.randint(60, 90) for call_id in left}
    for call_id in left:
        admit(admission, call_id, room[call_id])
        finish(admission, call_id, room[call_id] - left[call_id])
    wanted = rng.randint(1, sum(room.values()))
    computed = 0
    while sum(room[c] for c, tokens in left.items() if tokens == 0) < wanted:
        for call_id, tokens in left.items():
            if tokens:
                left[call_id] -= 1
                computed += 1
    # The simulated round ends with those calls that have nothing left.
    assert admission._tokens_until_free(wanted) == computed


def test_idle_time_does_not_slow_the_rate() -> None:
    admission, clock = queue(1000)
    for call_id in range(3):
        admit(admission, call_id, 100)
        clock.now += 1.0
        finish(admission, call_id, 100)
        admission.release(call_id)
        clock.now += 3600.0
    assert admission.throughput.rate == pytest.approx(100.0, rel=1e-6)


def test_a_call_that_would_start_after_its_deadline_is_refused_at_once() -> None:
    admission, clock = queue(10_000)
    admission.turn_tokens = 100
    for call_id in range(10):
        admit(admission, call_id, 300)
    clock.now += 10.0
    finish(admission, 0, 100)  # 10 a second, and each of ten calls takes a turn of 100
    assert refusal(admission, 20, 10, deadline=clock.now + 60) == pytest.approx(40.0, rel=0.01)
    admit(admission, 21, 10, deadline=clock.now + 110)
    admit(admission, 22, 10, client="light", deadline=clock.now + 1)
    # Of the other client it waits for as much as of its own.
    refusal(admission, 23, 10, client="light", deadline=clock.now + 1)
    admit(admission, 24, 10, client="light", deadline=clock.now + 3)
    admit(admission, 25, 10, deadline=clock.now + 1, priority=1)


def test_one_long_call_does_not_make_a_short_one_late() -> None:
    admission, clock = queue(10**7)
    admit(admission, 1, 10**6)
    clock.now += 1.0
    finish(admission, 1, 4096)
    admit(admission, 2, 10, deadline=clock.now + 2.0)


def test_reply_bytes_are_bounded_too() -> None:
    admission, _ = queue(1000, reply=1 << 20)
    admit(admission, 1, 10, reply=1 << 19)
    admit(admission, 2, 10, reply=1 << 19, client="b")
    refusal(admission, 3, 10, reply=1, client="c")
    admit(admission, 4, 10, reply=0, client="c")
    admission.release(1)
    admit(admission, 5, 10, reply=1, client="c")


def test_tokens_ahead_count_what_goes_first_and_is_not_computed() -> None:
    admission, _ = queue(1000)
    admit(admission, 1, 100)
    admit(admission, 2, 50, client="b", priority=1)
    admit(admission, 3, 10)
    assert admission.tokens_ahead(3) == 150
    assert admission.tokens_ahead(2) == 0
    finish(admission, 1, 70)
    assert admission.tokens_ahead(3) == 80


@pytest.mark.parametrize("others", [0, 300])
def test_what_is_refused_unread_is_what_would_be_refused(others: int) -> None:
    admission, _ = queue(1000)
    assert admission.room("a") == math.inf, "an empty queue takes any call"
    if others:
        admit(admission, 1, others, client="b")
    admit(admission, 2, 500, client="a")
    room = admission.room("a")
    assert 0 < room < 1000 - others - 500
    admission.check_room("a", int(room))
    with pytest.raises(ServiceError) as unread:
        admission.check_room("a", int(room) + 1)
    assert unread.value.fault.retry_after == refusal(admission, 3, int(room) + 1)
    admit(admission, 4, int(room))
    assert admission.room("a") <= 0


def test_half_of_the_queue_is_room_for_any_call() -> None:
    admission, _ = queue(1000)
    admit(admission, 1, 10, client="b")
    assert admission.room("a") == math.inf
    admission.check_room("a", 10**9)
    admit(admission, 2, 10**9)
