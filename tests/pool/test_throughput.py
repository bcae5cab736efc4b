"""The rate of a worker whose steps cost something by themselves, as the pool measures it."""

from __future__ import annotations

import math
import random
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field

import pytest

from scoring_service.errors import Reason, ServiceError
from scoring_service.pool.admission.admission import Admission, Ticket
from scoring_service.pool.admission.throughput import Mark, Throughput

BATCH = 1000
"""Tokens of a step, at most."""
WINDOW = 8 * BATCH
"""Tokens that the worker is given at once."""
MEMORY = 10.0


@dataclass
class Part:
    call_id: int
    tokens: int
    left: int
    sent: Mark = (math.nan, math.nan)


@dataclass
class Machine:
    """A queue and its worker, on a clock of their own; a call is one part."""

    step_seconds: float = 0.02
    """Of a step by itself."""
    token_seconds: float = 0.0002
    by_turns: bool = False
    """Whether a step takes something of every part rather than the oldest ones first."""
    most_tokens: int = 10**9
    now: float = 1000.0
    waiting: deque[Part] = field(default_factory=deque)
    running: list[Part] = field(default_factory=list)
    begun: set[int] = field(default_factory=set)
    under_pressure: list[tuple[int, float, int]] = field(default_factory=list)
    """(number of `spans`, seconds, tokens) of each step under pressure."""
    spans: list[float] = field(default_factory=lambda: [0.0])
    """Seconds under pressure between ends of parts that ran under pressure."""
    calls: int = 0

    def __post_init__(self) -> None:
        self.admission = Admission(
            self.most_tokens, 10**18, lambda: self.running_tokens, lambda: self.now
        )

    @property
    def full_rate(self) -> float:
        """Tokens per second in full steps."""
        return BATCH / (self.step_seconds + BATCH * self.token_seconds)

    @property
    def running_tokens(self) -> int:
        return sum(part.tokens for part in self.running)

    def admit(self, tokens: int, deadline: float = math.inf) -> int:
        self.calls += 1
        self.admission.admit(Ticket(self.calls, "", 0, tokens, 0), deadline)
        self.waiting.append(Part(self.calls, tokens, tokens))
        self.dispatch()
        return self.calls

    def dispatch(self) -> None:
        while self.waiting and (
            not self.running or self.running_tokens + self.waiting[0].tokens <= WINDOW
        ):
            part = self.waiting.popleft()
            part.sent = self.admission.throughput.mark()
            self.begun.add(part.call_id)
            self.running.append(part)
        self.admission.throughput.press(bool(self.waiting))

    def step(self) -> None:
        room = BATCH
        for part in list(self.running):
            share = BATCH // len(self.running) if self.by_turns else room
            taken = min(part.left, room, max(1, share))
            part.left -= taken
            room -= taken
        tokens = BATCH - room
        seconds = self.step_seconds + tokens * self.token_seconds
        self.now += seconds
        if self.waiting:
            self.under_pressure.append((len(self.spans), seconds, tokens))
            self.spans[-1] += seconds
        for part in [part for part in self.running if not part.left]:
            self.running.remove(part)
            if sum(self.spans) > part.sent[1]:
                self.spans.append(0.0)
            self.admission.finished(part.call_id, part.tokens, part.sent)
            self.admission.release(part.call_id)
        self.dispatch()

    def run_dry(self) -> None:
        while self.running:
            self.step()

    def keep_full(self, sizes: Iterator[int], seconds: float) -> None:
        """For so long, the queue has work for a few windows."""
        until = self.now + seconds
        while self.now < until:
            while sum(part.tokens for part in self.waiting) < 2 * WINDOW:
                self.admit(next(sizes))
            self.step()

    def computed_rate(self) -> float:
        """What steps under pressure did, each by itself, by the weights of the span it was in."""
        weights = [1.0, 1.0]
        for span in reversed(self.spans[1:-1]):
            weights.append(weights[-1] * math.exp(-span / MEMORY))
        weighed = [(weights[len(self.spans) - n], s, t) for n, s, t in self.under_pressure]
        seconds = sum(weight * took for weight, took, _ in weighed)
        return sum(weight * count for weight, _, count in weighed) / seconds if seconds else 0.0


def always(tokens: int) -> Iterator[int]:
    while True:
        yield tokens


def mixture(seed: int) -> Iterator[int]:
    rng = random.Random(seed)
    while True:
        yield rng.choice([1, 1, 1, 30, 400, 4000])


def refusal(machine: Machine, tokens: int, deadline: float) -> float:
    with pytest.raises(ServiceError) as refused:
        machine.admit(tokens, deadline)
    assert refused.value.fault.reason is Reason.QUEUE_FULL
    assert refused.value.fault.retry_after is not None
    return refused.value.fault.retry_after


def test_calls_of_one_token_tell_nothing_of_what_large_ones_take() -> None:
    machine = Machine()
    for _ in range(200):
        machine.admit(1)
        machine.run_dry()
    # 50 tokens a second, by which the next calls would begin after a minute and more.
    for _ in range(3):
        machine.admit(4000, machine.now + 30)
    machine.admit(1, machine.now + 30)
    began = machine.now
    machine.run_dry()
    assert machine.now - began < 3.0, "there was time enough for all of them"
    assert machine.begun == set(range(1, machine.calls + 1))


def test_nothing_is_refused_by_a_guess() -> None:
    machine = Machine()
    machine.admit(10**6, machine.now + 0.001)
    machine.admit(4000, machine.now + 0.001)
    machine.step()
    assert machine.admission.throughput.most >= machine.full_rate
    assert machine.admission.throughput.rate == 1000.0


@pytest.mark.parametrize("by_turns", [False, True], ids=["oldest first", "by turns"])
def test_under_overload_the_rate_is_that_of_full_steps(by_turns: bool) -> None:
    machine = Machine(by_turns=by_turns)
    for _ in range(200):
        machine.admit(1)
        machine.run_dry()
    machine.keep_full(always(4000), 40)
    assert machine.admission.throughput.rate == pytest.approx(machine.full_rate, rel=0.1)


def test_the_time_to_retry_follows_an_overload_that_comes_after_calls_of_one_token() -> None:
    machine = Machine(most_tokens=30 * 4000 * 17 // 16)
    for _ in range(200):
        machine.admit(1)
        machine.run_dry()
    for _ in range(30):
        machine.admit(4000)
    # Room comes with the last turn of all, since they have as much left, each of them.
    assert refusal(machine, 4000, math.inf) <= 30 * 4000 / 1000, "not by the rate of small calls"
    while machine.admission.calls > 25:
        machine.step()
    for _ in range(5):
        machine.admit(4000)
    left = machine.admission.tokens
    assert refusal(machine, 4000, math.inf) == pytest.approx(left / machine.full_rate, rel=0.15)


def test_the_time_to_retry_where_the_queue_holds_less_than_workers_would_take() -> None:
    """Nothing ever waits for a worker then."""
    machine = Machine(by_turns=True, most_tokens=10 * 400 * 17 // 16, token_seconds=0.004)
    errors = []
    for _ in range(20):
        while machine.admission.calls < 10:
            machine.admit(400)
        began, told = machine.now, refusal(machine, 400, math.inf)
        machine.run_dry()
        errors.append(told / (machine.now - began))
    assert not machine.under_pressure
    assert errors[1:] == pytest.approx([1.0] * 19, rel=0.05)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("by_turns", [False, True], ids=["oldest first", "by turns"])
def test_what_bounds_the_rate_is_never_below_what_was_computed(seed: int, by_turns: bool) -> None:
    """Pressure that comes and goes, and ends in the middle of parts."""
    rng = random.Random(seed)
    machine = Machine(by_turns=by_turns)
    sizes = mixture(seed)
    for _ in range(300):
        if not machine.running or rng.random() < 0.6:
            for _ in range(rng.randrange(1, 6)):
                machine.admit(next(sizes))
        machine.step()
        most = machine.admission.throughput.most
        assert most >= machine.computed_rate() * (1 - 1e-9)
    assert len(machine.under_pressure) > 30


@pytest.mark.parametrize("seed", range(5))
def test_what_would_begin_in_time_is_let_in_and_what_is_far_too_late_is_not(seed: int) -> None:
    """Mixed calls, in order of arrival; each refusal is compared with what would have come."""
    rng = random.Random(seed)
    machine = Machine()
    sizes = mixture(seed)
    late = 0
    for _ in range(150):
        for _ in range(rng.randrange(7)):
            machine.admit(next(sizes))
        for _ in range(rng.randrange(4) if machine.running else 0):
            machine.step()
        ahead = sum(part.tokens for part in machine.waiting)
        patience = rng.uniform(0.0, 3.0) * ahead / machine.full_rate
        try:
            call_id = machine.admit(1, machine.now + patience)
        except ServiceError:
            late += 1
            twin = Machine(now=machine.now)
            for part in (*machine.running, *machine.waiting):
                twin.admit(part.tokens)
            for ours, theirs in zip(machine.running, twin.running, strict=False):
                theirs.left = ours.left
            call_id = twin.admit(1)
            while call_id not in twin.begun:
                twin.step()
            assert twin.now - machine.now > patience, "it would have begun in time"
    assert late > 5


def test_what_ends_without_pressure_does_not_change_the_rate_under_it() -> None:
    machine = Machine()
    machine.keep_full(always(4000), 20)
    machine.run_dry()
    before = machine.admission.throughput.rate
    for _ in range(1000):
        machine.admit(4000)
        machine.run_dry()
    assert machine.admission.throughput.rate == pytest.approx(before)


def test_workers_that_finish_nothing_any_more_are_noticed() -> None:
    machine = Machine()
    machine.keep_full(always(4000), 20)
    machine.now += 60
    most = machine.admission.throughput.most
    assert machine.admission.throughput.rate <= most <= machine.full_rate / 3


def test_a_model_that_becomes_slower_is_noticed() -> None:
    machine = Machine()
    machine.keep_full(always(4000), 60)
    before = machine.full_rate
    machine.step_seconds *= 4
    machine.token_seconds *= 4
    machine.keep_full(always(4000), 40)
    assert machine.admission.throughput.rate == pytest.approx(before / 4, rel=0.2)
    wait = sum(part.tokens for part in machine.waiting) / machine.full_rate
    machine.admit(1, machine.now + wait)
    late = refusal(machine, 1, machine.now + wait / 4)
    assert late == pytest.approx(wait * 3 / 4, rel=0.2)


def test_time_that_was_lost_with_a_part_is_no_sign_of_slow_workers() -> None:
    """A worker hung for two minutes, or a call was cancelled after as long."""
    now = 0.0
    throughput = Throughput(lambda: 0, lambda: now)
    throughput.busy(True)
    throughput.press(True)

    def work(seconds: int) -> None:
        nonlocal now
        for _ in range(seconds):
            sent = throughput.mark()
            now += 1.0
            throughput.finished(4096, sent)

    work(20)
    usual = throughput.rate
    now += 120.0
    assert throughput.most < usual / 2
    throughput.dropped()
    assert throughput.rate == pytest.approx(usual)
    work(1)
    assert throughput.rate == pytest.approx(4096.0)


def test_a_guess_is_no_more_than_what_can_have_been_computed() -> None:
    now = 0.0
    throughput = Throughput(lambda: 8192, lambda: now)
    throughput.busy(True)
    throughput.press(True)
    now += 16.0
    assert throughput.rate == throughput.most == 512.0
