"""How many servers stand behind a target, as far as the resolver knows."""

import threading
import time

from scoring_client.errors import ScoringError
from scoring_client.weights.replicas import replica_targets

_FRESH_SECONDS = 5.0
"""A number that is older is asked for again: servers come and go."""


class ServerCount:
    """Asks the resolver in a thread, so that nobody waits for it, an event loop least of all.

    Args:
        target: As the channel has it; None = it is not known where the channel leads.
    """

    def __init__(self, target: str | None) -> None:
        self._target = target
        self._known: int | None = None
        self._asked_at: float | None = None
        self._lock = threading.Lock()

    def look(self) -> int | None:
        """Return the number as of the last look; None = not known, or not yet."""
        now = time.monotonic()
        with self._lock:
            stale = self._asked_at is None or now - self._asked_at > _FRESH_SECONDS
            if self._target is not None and stale:
                self._asked_at = now
                threading.Thread(target=self._ask, args=(self._target,), daemon=True).start()
            return self._known

    def _ask(self, target: str) -> None:
        found = servers_behind(target)
        with self._lock:
            self._known = found


def servers_behind(target: str) -> int | None:
    """Return how many servers a target names; None = only gRPC can tell, or nobody."""
    scheme, _, rest = target.partition(":")
    if scheme in ("ipv4", "ipv6"):
        return len(rest.split(","))
    if scheme in ("unix", "unix-abstract", "vsock"):
        return 1
    try:
        return len(replica_targets(target)) or None
    except (OSError, ScoringError):
        return None
