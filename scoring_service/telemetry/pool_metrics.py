"""Metrics of a pool and its workers, read whenever somebody asks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Protocol

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from scoring_service.engine.events import ROWS_BUCKETS, WorkerStats


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


class PoolCollector(Collector):
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
