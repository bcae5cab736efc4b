"""What a pool tells whoever keeps its metrics."""

from __future__ import annotations


class PoolObserver:
    """Hears what happens; the one that does nothing with it."""

    def refused(self, reason: str) -> None:
        """Admission refused a call."""

    def retried(self) -> None:
        """What a dead worker had not answered goes to another one."""

    def worker_died(self, index: int) -> None:
        """A worker died, or was killed because it hung."""

    def worker_ready(self, index: int, seconds: float) -> None:
        """A worker answers, so many seconds after it was started."""

    def audited(self, outcome: str, difference: float | None = None) -> None:
        """A completion was computed a second time ("same", "different", "above_threshold"), or
        could not be.
        """

    def weights_updated(self, outcome: str, seconds: dict[str, float]) -> None:
        """An update of the weights ended ("committed", "failed", "aborted"); its phases."""
