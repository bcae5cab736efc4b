"""When a dead worker is started again, and when its deaths are a crash loop."""

from __future__ import annotations

from dataclasses import dataclass, field

from scoring_service.pool.settings import PoolSettings


@dataclass(slots=True)
class RestartPolicy:
    """The deaths of one worker.

    Only crashes count, which are deaths of its own making. Whoever kills a worker (an operator, a
    test, a machine that is shut down) causes no crash loop. For want of memory the kernel kills as
    an operator does; where it does not say so, a kill counts unless the worker answered.
    """

    settings: PoolSettings
    crashes: int = field(default=0, init=False)
    """Crashes in a row."""

    def died(
        self, *, from_outside: bool, answered_seconds: float | None, maybe_memory: bool = False
    ) -> float:
        """Notes a death.

        Args:
            from_outside: killed by a signal that programs do not send themselves.
            answered_seconds: how long the worker was ready; None = it never was.
            maybe_memory: and whether that was for want of memory is not known.

        Returns:
            Seconds to wait before the next start.
        """
        if answered_seconds is not None and answered_seconds >= self.settings.stable_seconds:
            self.crashes = 0
        if from_outside and (answered_seconds is not None or not maybe_memory):
            return self.settings.first_backoff
        self.crashes += 1
        if self.looping:
            return self.settings.longest_backoff
        pause: float = self.settings.first_backoff * 2 ** (self.crashes - 1)
        return min(pause, self.settings.longest_backoff)

    @property
    def looping(self) -> bool:
        """Whether starting it again has not helped for too often."""
        return self.crashes >= self.settings.crash_limit
