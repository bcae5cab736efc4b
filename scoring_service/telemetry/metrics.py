"""Prometheus metrics of the server, on a port of their own. Names are close to vLLM's."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, TypeVar

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    disable_created_metrics,
)

from scoring_service.pool.observer import PoolObserver
from scoring_service.telemetry.log_metrics import Log, LogCollector
from scoring_service.telemetry.metrics_http import listening_address, serve_metrics
from scoring_service.telemetry.pool_metrics import Pool, PoolCollector
from scoring_service.telemetry.usage_metrics import UsageMetrics
from scoring_service.types import Usage

_Labelled = TypeVar("_Labelled", Counter, Histogram)

_BUGS = ("INTERNAL", "UNKNOWN", "DATA_LOSS")
"""Statuses that only a bug gives."""

_SECONDS = (0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 150, 300, 600)


class Metrics(PoolObserver):
    """Every metric of one server.

    Args:
        usage_tag: tag of requests whose values usage is counted by, beside identities; None = none.
    """

    def __init__(self, usage_tag: str | None = None) -> None:
        # A second series beside each, of when it was made.
        disable_created_metrics()  # type: ignore[no-untyped-call]
        self.registry = CollectorRegistry()
        self._series: dict[tuple[Any, tuple[str, ...]], Any] = {}

        def counter(name: str, text: str, *labels: str) -> Counter:
            return Counter(name, text, labels, registry=self.registry)

        def histogram(name: str, text: str, *labels: str) -> Histogram:
            return Histogram(name, text, labels, registry=self.registry, buckets=_SECONDS)

        grpc_labels = ("grpc_type", "grpc_service", "grpc_method")
        self._started = counter("grpc_server_started", "RPCs begun.", *grpc_labels)
        self._handled = counter(
            "grpc_server_handled", "RPCs ended, by status.", *grpc_labels, "grpc_code"
        )
        self._handling = histogram(
            "grpc_server_handling_seconds", "Time of RPCs from begin to end.", *grpc_labels
        )
        self._queue_time = histogram(
            "scoring_request_queue_time_seconds",
            "From admission to the first computation, or to the call's end before it.",
            "rpc",
            "outcome",
        )
        self._compute_time = histogram(
            "scoring_request_compute_time_seconds", "Computation, as the workers count it.", "rpc"
        )
        self._usage = UsageMetrics(self.registry, usage_tag)
        self._refused = counter("scoring_requests_refused", "Calls refused at admission.", "reason")
        self._retried = counter(
            "scoring_parts_retried", "Parts of calls that a dead worker left to another."
        )
        self._deaths = counter("scoring_worker_restarts", "Deaths of workers.", "worker")
        self._start_seconds = Gauge(
            "scoring_worker_start_seconds",
            "From a worker's last start to its first answer.",
            ("worker",),
            registry=self.registry,
        )
        self._updates = counter(
            "scoring_weight_updates", "Updates of the weights, by how they ended.", "outcome"
        )
        self._update_seconds = histogram(
            "scoring_weight_update_seconds", "Time of updates of the weights, by phase.", "phase"
        )
        self._audits = counter("scoring_self_audits", "Calls computed a second time.", "outcome")
        # A series that begins with 1 has not increased.
        self._audits.labels("above_threshold")
        self._audit_difference = Gauge(
            "scoring_self_audit_max_difference",
            "Largest difference of a log-prob that the self-audit met so far, in nats.",
            registry=self.registry,
        )
        self._largest_difference = 0.0

    def watch(self, pool: Pool) -> None:
        """Shows a pool and its workers too."""
        self.registry.register(PoolCollector(pool))
        for worker in pool.workers:
            # A series that begins with 1 has not increased, so the first death would be missed.
            self._deaths.labels(str(worker.index))

    def watch_log(self, log: Log) -> None:
        """Shows the lines that the log lost too."""
        self.registry.register(LogCollector(log))

    def serve(self, host: str, port: int) -> int:
        """Answers GET /metrics from a thread of its own.

        Returns:
            The port, where 0 was asked for a free one.

        Raises:
            OSError: the address cannot be listened on.
        """
        return serve_metrics(listening_address(host), port, self.registry)

    def rpc_known(self, kind: str, service: str, method: str) -> None:
        """An RPC may begin: its statuses of bugs are 0, so that the first one is an increase."""
        for code in _BUGS:
            self._of(self._handled, kind, service, method, code)

    def rpc_started(self, kind: str, service: str, method: str) -> None:
        """An RPC begins."""
        if (self._started, (kind, service, method)) not in self._series:
            self.rpc_known(kind, service, method)
        self._of(self._started, kind, service, method).inc()

    def rpc_handled(self, kind: str, service: str, method: str, code: str, seconds: float) -> None:
        """An RPC ended."""
        self._of(self._handled, kind, service, method, code).inc()
        self._of(self._handling, kind, service, method).observe(seconds)

    def answered(
        self, rpc: str, identity: str, tags: Iterable[tuple[str, str]], usage: Usage, sent: int
    ) -> None:
        """A call was answered to its end."""
        self._of(self._queue_time, rpc, "answered").observe(usage.queue_seconds)
        self._of(self._compute_time, rpc).observe(usage.compute_seconds)
        self._usage.count(identity, tags, usage, sent)

    def cut_short(
        self,
        rpc: str,
        identity: str,
        tags: Iterable[tuple[str, str]],
        usage: Usage,
        sent: int,
        *,
        begun: bool,
    ) -> None:
        """A call that was admitted ended otherwise, if any of it was computed or none."""
        outcome = "cut_short" if begun else "never_begun"
        self._of(self._queue_time, rpc, outcome).observe(usage.queue_seconds)
        self._usage.count(identity, tags, usage, sent)

    def audited(self, outcome: str, difference: float | None = None) -> None:
        """See PoolObserver."""
        self._audits.labels(outcome).inc()
        if difference is not None:
            self._largest_difference = max(self._largest_difference, difference)
            self._audit_difference.set(self._largest_difference)

    def refused(self, reason: str) -> None:
        """See PoolObserver."""
        self._refused.labels(reason).inc()

    def retried(self) -> None:
        """See PoolObserver."""
        self._retried.inc()

    def worker_died(self, index: int) -> None:
        """See PoolObserver."""
        self._deaths.labels(str(index)).inc()

    def weights_updated(self, outcome: str, seconds: dict[str, float]) -> None:
        """See PoolObserver."""
        self._updates.labels(outcome).inc()
        for phase, spent in seconds.items():
            self._update_seconds.labels(phase).observe(spent)

    def worker_ready(self, index: int, seconds: float) -> None:
        """See PoolObserver."""
        self._start_seconds.labels(str(index)).set(seconds)

    def _of(self, metric: _Labelled, *labels: str) -> _Labelled:
        """The series of these labels. To look it up in the metric takes longer than to count."""
        series = self._series.get((metric, labels))
        if series is None:
            series = self._series[metric, labels] = metric.labels(*labels)
        return series
