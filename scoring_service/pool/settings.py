"""How a pool is run. Times in seconds."""

from __future__ import annotations

from dataclasses import dataclass, field

from scoring_service.pool.streams.self_audit import AuditSettings


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolSettings:
    """What the operator decides of a pool."""

    max_queue_tokens: int
    """Tokens of admitted calls that are not answered yet."""
    max_queue_reply_bytes: int = 16 << 30
    """Bytes of their answers."""
    workers: int = 1
    await_weights: bool = False
    """Calls are refused until the first update of the weights was committed."""
    heartbeat_timeout: float = 30.0
    """A worker that was silent for longer hangs, and is killed."""
    start_timeout: float = 300.0
    """And one that has not said a first word by then: to read its program, with torch in it, takes
    a slow disk a minute. To load the model takes as long as it takes."""
    step_timeout: float = 600.0
    """So does one that has been in one step for longer."""
    reader_timeout: float = 300.0
    """A call whose reader took nothing for so long, with results waiting for it, is ended."""
    look_seconds: float = 1.0
    """Between two looks at which workers hang, and which calls have expired or are not read; and
    before what met a bug in that, or in starting a worker again, begins anew."""
    audit: AuditSettings = field(default_factory=AuditSettings)
    first_backoff: float = 0.5
    """Pause before a dead worker is started again; doubled by every crash."""
    longest_backoff: float = 30.0
    crash_limit: int = 5
    """Crashes in a row that are a crash loop."""
    stable_seconds: float = 60.0
    """A worker that answered for so long has left earlier crashes behind."""
