"""An update of the weights as its callers see it: what they asked for, and how far it is."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from enum import StrEnum

from scoring_service.errors import Fault


class RunningSamples(StrEnum):
    """What becomes of samples that are being drawn at a commit."""

    FINISH = "finish"
    CONTINUE = "continue"
    ABORT = "abort"


class Staging(StrEnum):
    """Where new weights are put while the old ones answer."""

    AUTO = "auto"
    BESIDE = "beside"
    IN_PLACE = "in_place"


class Phase(StrEnum):
    """How far an update is."""

    RECEIVING = "receiving"
    STAGING = "staging"
    DRAINING = "draining"
    APPLYING = "applying"
    COMMITTED = "committed"
    FAILED = "failed"
    ABORTED = "aborted"


ENDED = frozenset({Phase.COMMITTED, Phase.FAILED, Phase.ABORTED})


@dataclass(frozen=True, slots=True)
class UpdateOptions:
    """What an update was asked to do."""

    version: int
    base_version: int | None = None
    """Version that must be running."""
    allow_older_version: bool = False
    partial: bool = False
    """Tensors that are not given keep their values."""
    convert_dtypes: bool = False
    """Other floating-point types are converted to the model's."""
    digest: str = ""
    """That the new weights must have; empty = any."""
    running_samples: RunningSamples = RunningSamples.FINISH
    staging: Staging = Staging.AUTO


@dataclass(slots=True)
class UpdateStatus:
    """How far an update is."""

    update_id: str
    version: int
    identity: str = ""
    """Who began it."""
    phase: Phase = Phase.RECEIVING
    bytes_received: int = 0
    bytes_total: int = 0
    tensors_received: int = 0
    tensors_total: int = 0
    workers_staged: int = 0
    workers_total: int = 0
    staging: Staging | None = None
    """None = not decided yet."""
    digest: str = ""
    fault: Fault | None = None
    """Why it failed or was aborted."""
    seconds: dict[Phase, float] = field(default_factory=dict)
    """Seconds of each phase that is over."""
    _since: float = field(default_factory=time.monotonic)

    def enter(self, phase: Phase) -> None:
        """The next phase begins."""
        now = time.monotonic()
        if self.phase not in ENDED:
            self.seconds[self.phase] = self.seconds.get(self.phase, 0.0) + now - self._since
        self.phase, self._since = phase, now

    @property
    def error(self) -> str:
        """Why it failed or was aborted, for people."""
        return "" if self.fault is None else self.fault.message

    @property
    def phase_seconds(self) -> dict[Phase, float]:
        """Seconds in each phase so far."""
        if self.phase in ENDED:
            return self.seconds
        running = time.monotonic() - self._since
        return {**self.seconds, self.phase: self.seconds.get(self.phase, 0.0) + running}
