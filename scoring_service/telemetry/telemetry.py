"""What the front end reports to."""

from __future__ import annotations

from dataclasses import dataclass, field

from scoring_service.telemetry.metrics import Metrics
from scoring_service.telemetry.traces import Traces


@dataclass(frozen=True, slots=True)
class Telemetry:
    """Metrics are always kept, whether or not anybody reads them; traces only where they go."""

    metrics: Metrics = field(default_factory=Metrics)
    traces: Traces = field(default_factory=Traces)
