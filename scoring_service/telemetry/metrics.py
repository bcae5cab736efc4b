"""Prometheus metrics of the server, on a port of their own. Names are close to vLLM's."""

from __future__ import annotations

import socket
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Protocol, TypeVar

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    disable_created_metrics,
)
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from scoring_service.engine.events import ROWS_BUCKETS, WorkerStats
from scoring_service.pool.observer import PoolObserver
from scoring_service.telemetry.labels import OTHER, BoundedLabel
from scoring_service.telemetry.metrics_http import serve_metrics
from scoring_service.types import Usage

_Labelled = TypeVar("_Labelled", Counter, Histogram)

_UsageSeries = tuple[list[tuple[str, Counter]], Counter]
"""Fields of usage with their series, and that of bytes sent."""

_MAX_PAIRS = 256
"""Identities with values of the tag that usage is counted by; each has seven series."""

_BUGS = ("INTERNAL", "UNKNOWN", "DATA_LOSS")
"""Statuses that only a bug gives."""

_SECONDS = (0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 150, 300, 600)


class Worker(Protocol):
    """What is shown of a worker."""

    index: int
    stats: WorkerStats

    @property
    def is_ready(self) -> bool:
        """Whether it answers."""
        ...


class Pool(Protocol):
    """What is shown of a pool: single numbers, as another thread than its own reads them."""

    name: str

    @property
    def takes_calls(self) -> bool:
        """Whether it is ready, as health has it."""
        ...

    @property
    def waiting_calls(self) -> int:
        """Calls of which nothing was begun."""
        ...

    @property
    def unread_bytes(self) -> int:
        """Results that wait for readers."""
        ...

    @property
    def weight_version(self) -> int | None:
        """Of the weights that calls begin with."""
        ...

    @property
    def workers(self) -> Sequence[Worker]:
        """Its workers."""
        ...

    @property
    def running_calls(self) -> int:
        """Calls of which something was begun."""
        ...

    @property
    def queued_tokens(self) -> int:
        """Tokens of admitted calls that are not answered yet."""
        ...

    @property
    def taken_tokens(self) -> int:
        """Of the queue's room, which calls take until they are over."""
        ...


class Log(Protocol):
    """What is shown of the log."""

    lost: int
    """Lines for which there was no room."""


class Metrics(PoolObserver):
    """Every metric of one server.

    Args:
        usage_tag: tag of requests whose values usage is counted by, beside identities; None = none.
    """

    def __init__(self, usage_tag: str | None = None) -> None:
        # A second series beside each, of when it was made.
        disable_created_metrics()  # type: ignore[no-untyped-call]
        self.registry = CollectorRegistry()
        self._usage_tag = usage_tag
        self._identities = BoundedLabel()
        self._tags = BoundedLabel()
        self._usage: dict[tuple[str, str], _UsageSeries] = {}
        """By identity and tag."""
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
        by_whom = ("identity", "tag")
        self._tokens = {
            "prompt_tokens": counter(
                "scoring_prompt_tokens", "Prompt tokens of answered calls.", *by_whom
            ),
            "completion_tokens": counter(
                "scoring_scored_tokens", "Completion tokens scored.", *by_whom
            ),
            "sampled_tokens": counter("scoring_sampled_tokens", "Tokens drawn.", *by_whom),
            "computed_tokens": counter(
                "scoring_computed_tokens", "Positions that went through the body.", *by_whom
            ),
            "cached_tokens": counter(
                "scoring_cached_tokens", "Prompt tokens found in a prefix cache.", *by_whom
            ),
            "head_rows": counter("scoring_head_rows", "Rows that went through the head.", *by_whom),
        }
        self._reply_bytes = counter("scoring_reply_bytes", "Bytes of answers.", *by_whom)
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
        self.registry.register(_PoolCollector(pool))
        for worker in pool.workers:
            # A series that begins with 1 has not increased, so the first death would be missed.
            self._deaths.labels(str(worker.index))

    def watch_log(self, log: Log) -> None:
        """Shows the lines that the log lost too."""
        self.registry.register(_LogCollector(log))

    def serve(self, host: str, port: int) -> int:
        """Answers GET /metrics from a thread of its own.

        Returns:
            The port, where 0 was asked for a free one.

        Raises:
            OSError: the address cannot be listened on.
        """
        return serve_metrics(_listening_address(host), port, self.registry)

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
        self._count(identity, tags, usage, sent)

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
        self._count(identity, tags, usage, sent)

    def _count(
        self, identity: str, tags: Iterable[tuple[str, str]], usage: Usage, sent: int
    ) -> None:
        tokens, reply_bytes = self._usage_of(self._identities.of(identity), self._tag(tags))
        for name, series in tokens:
            series.inc(getattr(usage, name))
        reply_bytes.inc(sent)

    def _usage_of(self, identity: str, tag: str) -> _UsageSeries:
        """Series of a pair. Beyond so many, an identity's further tags are counted as "other"."""
        found = self._usage.get((identity, tag))
        if found is None:
            if len(self._usage) >= _MAX_PAIRS and tag != OTHER:
                return self._usage_of(identity, OTHER)
            tokens = [(name, metric.labels(identity, tag)) for name, metric in self._tokens.items()]
            found = self._usage[identity, tag] = tokens, self._reply_bytes.labels(identity, tag)
        return found

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

    def _tag(self, tags: Iterable[tuple[str, str]]) -> str:
        if self._usage_tag is None:
            return ""
        return self._tags.of(dict(tags).get(self._usage_tag, ""))


def _listening_address(host: str) -> str:
    """The address as gRPC takes it: all are those of both families, and [::1] has brackets."""
    if host in ("0.0.0.0", "[::]") and socket.has_dualstack_ipv6():
        return "::"
    return host.removeprefix("[").removesuffix("]")


class _LogCollector(Collector):
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


class _PoolCollector(Collector):
    """Reads a pool whenever somebody asks."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool

    def collect(self) -> Iterator[Metric]:
        """See prometheus_client."""
        pool = self._pool
        for name, text, value in (
            ("ready", "1 = calls are taken, as health says.", pool.takes_calls),
            ("num_requests_running", "Calls that are computed.", pool.running_calls),
            ("num_requests_waiting", "Calls of which nothing was begun.", pool.waiting_calls),
            ("queue_tokens", "Tokens of admitted calls not answered yet.", pool.queued_tokens),
            ("queue_taken_tokens", "Tokens of the queue that calls take.", pool.taken_tokens),
            ("unread_reply_bytes", "Results that wait for readers.", pool.unread_bytes),
        ):
            family = GaugeMetricFamily(f"scoring_{name}", text, labels=("model_name",))
            family.add_metric((pool.name,), value)
            yield family
        version = GaugeMetricFamily(
            "scoring_weight_version", "Version that calls begin with.", labels=("model_name",)
        )
        if pool.weight_version is not None:
            version.add_metric((pool.name,), pool.weight_version)
        yield version
        yield from _worker_metrics(pool.workers)


def _worker_metrics(workers: Sequence[Worker]) -> Iterator[Metric]:
    ready = GaugeMetricFamily("scoring_worker_ready", "1 = answers.", labels=("worker",))
    pages = GaugeMetricFamily(
        "scoring_kv_cache_usage_perc", "Share of the pages that calls hold.", labels=("worker",)
    )
    counters = {
        "steps": CounterMetricFamily("scoring_steps", "Steps.", labels=("worker",)),
        "step_seconds": CounterMetricFamily(
            "scoring_step_seconds", "Seconds in steps.", labels=("worker",)
        ),
        "looked_up_tokens": CounterMetricFamily(
            "scoring_prefix_cache_queries",
            "Prompt tokens looked for in the prefix cache.",
            labels=("worker",),
        ),
        "hit_tokens": CounterMetricFamily(
            "scoring_prefix_cache_hits", "Those of them that were found.", labels=("worker",)
        ),
    }
    rows = HistogramMetricFamily("scoring_rows_per_step", "Rows of a step.", labels=("worker",))
    for worker in workers:
        stats, label = worker.stats, (str(worker.index),)
        ready.add_metric(label, float(worker.is_ready))
        held = 1.0 - stats.free_pages / stats.pages if stats.pages else 0.0
        pages.add_metric(label, held)
        for name, family in counters.items():
            family.add_metric(label, getattr(stats, name))
        if stats.rows_per_step:
            rows.add_metric(label, _cumulative(stats.rows_per_step), stats.rows)
    yield from (ready, pages, *counters.values(), rows)


def _cumulative(counts: tuple[int, ...]) -> list[tuple[str, float]]:
    bounds = [*map(float, ROWS_BUCKETS), float("inf")]
    total = 0
    found = []
    for bound, count in zip(bounds, counts, strict=True):
        total += count
        found.append(("+Inf" if bound == float("inf") else str(bound), float(total)))
    return found
