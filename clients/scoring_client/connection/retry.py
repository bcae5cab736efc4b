"""When to send a request again, and after how long."""

import copy
import math
import random
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from enum import Enum
from numbers import Real
from typing import Any, Self

from scoring_client.connection.counts import check_count
from scoring_client.connection.servers import ServerCount
from scoring_client.errors import DeadlineError, ScoringError, UnavailableError, invalid, reworded

INITIAL_BACKOFF = 0.25
"""Seconds before the first retry, before jitter."""
BACKOFF_FACTOR = 3.0
"""How much longer each wait is than the one before: five attempts take about ten seconds."""
MAX_BACKOFF = 10.0
"""Most seconds between attempts, before jitter, unless the server names more."""
OTHER_WEIGHTS = ("WEIGHT_VERSION_MISMATCH", "WEIGHTS_DIGEST_MISMATCH")
"""Reasons for which another server behind the same name is asked: each has weights of its own."""
_MAX_REFUSALS = 16
"""So many are asked at most. Round robin goes on with every call and part of a call, so that of two
servers one of many parts may meet the same one time after time."""
_REFUSALS_OF_ONE = 4
"""After so many by one and the same server, where nobody knows how many there are, it is alone."""
_OTHER_SERVER_PAUSE = 0.05
_MAX_OTHER_SERVER_PAUSE = 0.4
SHORT_CALL_SECONDS = 30.0
"""Most seconds of a short call that sets none itself."""
_MAX_TIMEOUT = 1e9
"""Seconds, 32 years. gRPC counts nanoseconds in 64 bits: a deadline beyond them is past at once."""
_FIRST_PAUSE = 0.01
_MAX_PAUSE = 0.25
_MIN_POLL_SECONDS = 0.01
MAX_POLL_SECONDS = 5.0
"""Seconds of one question of a wait: whoever does not answer may answer the next."""


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """Exponential backoff with jitter; never less than a delay that the server names."""

    max_attempts: int = 5
    """Attempts in a row that finish no item before the call fails; 1 = never retry."""

    def __post_init__(self) -> None:
        check_count("max_attempts", self.max_attempts)

    def allows(self, error: ScoringError, failures: int) -> bool:
        """Return whether to try again after ``failures`` attempts in a row failed."""
        return error.retryable and failures < self.max_attempts

    def delay(self, error: ScoringError, failures: int) -> float:
        """Return the seconds to wait after the ``failures``-th attempt in a row failed.

        Many trainers are refused at the same moment, so each waits a little differently: a delay
        that the server named is prolonged by up to a fifth, one of ours varies by a fifth.
        """
        # Not for secrets: jitter.
        spread = random.random()
        backoff: float = min(MAX_BACKOFF, INITIAL_BACKOFF * BACKOFF_FACTOR ** (failures - 1))
        invited = 0.0 if error.retry_delay is None else error.retry_delay
        return max(backoff * (0.8 + 0.4 * spread), invited * (1.0 + 0.2 * spread))


class Attempts:
    """The attempts of one call: how much time each has, and whether there is another."""

    def __init__(
        self,
        policy: RetryPolicy,
        timeout: float | None,
        clock: Callable[[], float] = time.monotonic,
        servers: ServerCount | None = None,
    ) -> None:
        """Start the clock.

        Args:
            policy: When to try again.
            timeout: Seconds for all attempts together; None = no limit.
            clock: Seconds, for tests.
            servers: How many there are, of which another may do what one refuses; None = unknown.
        """
        self._policy = policy
        self._clock = clock
        self._timeout = timeout
        self._began = clock()
        self._deadline = None if timeout is None else clock() + timeout
        self._failures = 0
        self._servers = servers or ServerCount(None)
        self._refused_by: list[str] = []

    def of_part(self) -> Self:
        """Return the attempts of a part of the call: counted by themselves, in the same time."""
        attempts = copy.copy(self)
        attempts._failures = 0
        attempts._refused_by = []
        return attempts

    def remaining(self) -> float | None:
        """Return the seconds left, None when there is no limit.

        Raises:
            DeadlineError: none are left.
        """
        if self._deadline is None:
            return None
        left = self._deadline - self._clock()
        if left <= 0:
            raise DeadlineError(f"the timeout of {self._timeout:g} s passed")
        return left

    def wait_after(self, error: ScoringError, *, progressed: bool) -> float:
        """Return the seconds to wait before the next attempt.

        Args:
            error: What ended the attempt.
            progressed: Whether it finished an item. Then the count begins anew: a long call may
                meet more broken connections than a short one.

        Raises:
            ScoringError: ``error``, when there is no next attempt.
        """
        if progressed:
            self._failures = 0
            self._began = self._clock()
            self._refused_by.clear()
        if error.reason in OTHER_WEIGHTS and self._is_another_left(error):
            pause = _OTHER_SERVER_PAUSE * len(self._refused_by)
            # Not for secrets: parts that move from server to server in step would never part.
            spread = random.uniform(0.5, 1.0)
            return self._in_time(spread * min(pause, _MAX_OTHER_SERVER_PAUSE), error)
        # A server that drains says so until its running calls have ended, and round robin may meet
        # it again and again while others have room. It ends by itself, so it does not count.
        counts = error.reason != "DRAINING" or self._policy.max_attempts == 1
        self._failures += counts
        if counts and not self._policy.allows(error, self._failures):
            raise self._given_up(error)
        return self._in_time(self._policy.delay(error, max(self._failures, 1)), error)

    def _given_up(self, error: ScoringError) -> ScoringError:
        """Return the last error, with why it is the last one though time may be left."""
        if not error.retryable or self._failures < 2:
            return error
        return reworded(
            error,
            f"{error.message}; gave up after {self._failures} attempts in "
            f"{self._clock() - self._began:.1f} s: a client's max_attempts= rides out a restart",
        )

    def _is_another_left(self, error: ScoringError) -> bool:
        """Return whether a server that has not refused may have the weights that are wanted."""
        self._refused_by.append(error.metadata.get("server", ""))
        servers, refusals = set(self._refused_by), len(self._refused_by)
        known = self._servers.look()
        if self._policy.max_attempts == 1 or refusals >= _MAX_REFUSALS or known == 1:
            return False
        if known is None:
            return len(servers) > 1 or refusals < _REFUSALS_OF_ONE
        return len(servers) < known

    def _in_time(self, delay: float, error: ScoringError) -> float:
        """Return the delay.

        Raises:
            ScoringError: ``error``, when the timeout would pass meanwhile.
        """
        if self._deadline is not None and self._clock() + delay >= self._deadline:
            raise error
        return delay


def time_limit(timeout: float | None) -> float | None:
    """Return a timeout in seconds as gRPC takes it; None, and what is as good as none, is no limit.

    Raises:
        InvalidRequestError: it is no number.
    """
    given: Any = timeout
    if given is None:
        return None
    if not isinstance(given, Real) or math.isnan(given):
        raise invalid("timeout", f"expected seconds or None, got {timeout!r}")
    seconds = float(given)
    return None if seconds > _MAX_TIMEOUT else seconds


class ClientTimeout(Enum):
    """Stands for a timeout that was not given, where None means that there is no limit."""

    CLIENTS = "the client's"


def short_time_limit(timeout: float | ClientTimeout | None, clients: float | None) -> float | None:
    """Return the seconds of a short call as gRPC takes them.

    Args:
        timeout: The call's own; None = no limit.
        clients: Those of the client's calls that set none; None = no limit.

    Raises:
        InvalidRequestError: it is no number.
    """
    if not isinstance(timeout, ClientTimeout):
        return time_limit(timeout)
    limit = time_limit(clients)
    return SHORT_CALL_SECONDS if limit is None else min(limit, SHORT_CALL_SECONDS)


def countdown(timeout: float | None, pauses: Iterable[float]) -> Iterator[tuple[float, float]]:
    """Yield the seconds left, and how long to sleep before the next look, until none are left.

    There is one look however little time there is.

    Raises:
        InvalidRequestError: the timeout is no number.
    """
    limit = time_limit(timeout)
    began = time.monotonic()
    deadline = math.inf if limit is None else began + limit
    for number, pause in enumerate(pauses):
        left = deadline - time.monotonic()
        if left <= 0 and number > 0:
            return
        yield max(left, _MIN_POLL_SECONDS), min(pause, max(left, 0.0))


def telling(last: ScoringError | None, error: ScoringError) -> ScoringError:
    """Return which of two failed looks to tell of: that time ran out says less than another reason.

    Args:
        last: Of the looks before; None = there was none, or it was answered.
        error: Of the look just now, which the end of the wait may have cut off.
    """
    return last if last is not None and isinstance(error, DeadlineError) else error


def not_ready(timeout: float | None, last: ScoringError | None) -> UnavailableError:
    """Return the error of a wait for a server: how long it was, and what was said last."""
    said, code = ("", None) if last is None else (f": {last}", last.code)
    return UnavailableError(f"no server was ready within {timeout} s{said}", code=code)


def not_come(version: int, timeout: float | None, last: ScoringError | None) -> DeadlineError:
    """Return the error of a wait for weights: how long it was, and what was said last.

    Args:
        version: Of the weights.
        timeout: Seconds that it was given.
        last: How the last look failed; None = it was answered, with an earlier version.
    """
    said = "" if last is None else f": {last}"
    return DeadlineError(f"version {version} did not come within {timeout} s{said}")


def growing_pauses() -> Iterator[float]:
    """Yield how long to sleep before the next look, a little longer each time."""
    pause = _FIRST_PAUSE
    while True:
        yield pause
        pause = min(pause * 1.5, _MAX_PAUSE)
