"""Metrics of the log."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

from prometheus_client.core import CounterMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector


class Log(Protocol):
    """What is shown of the log."""

    lost: int
    """Lines for which there was no room."""


class LogCollector(Collector):
    """Reads the log's count whenever somebody asks."""

    def __init__(self, log: Log) -> None:
        self._log = log

    def collect(self) -> Iterator[Metric]:
        """See prometheus_client."""
        yield CounterMetricFamily(
            "scoring_log_lines_lost",
            "Lines of log that nobody took in time.",
            value=self._log.lost,
        )
