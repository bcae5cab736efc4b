"""Metrics that one thread counts read as those of prometheus_client do."""

from __future__ import annotations

import prometheus_client
from prometheus_client import CollectorRegistry, generate_latest

from scoring_service.telemetry.counted import Counter, Histogram
from scoring_service.telemetry.metrics import Metrics

LABELS = ("rpc", "outcome")
SERIES = (("Score", "answered"), ("Sample", 'quoted "\\n" and \n'))


def text_of(registry: CollectorRegistry) -> list[str]:
    """What a scrape gives, without the library's series of when others were made."""
    return [
        line for line in generate_latest(registry).decode().splitlines() if "_created" not in line
    ]


def test_a_counter_reads_as_the_librarys() -> None:
    ours, theirs = CollectorRegistry(), CollectorRegistry()
    counter = Counter("calls", "Calls.", LABELS, ours)
    reference = prometheus_client.Counter("calls", "Calls.", LABELS, registry=theirs)
    assert text_of(ours) == text_of(theirs), "without a series"
    for labels, amounts in zip(SERIES, ((1, 2, 40), (0.5,)), strict=True):
        for amount in amounts:
            counter.of(*labels).value += amount
            reference.labels(*labels).inc(amount)
    counter.of("TopKLogprobs", "answered")
    reference.labels("TopKLogprobs", "answered")
    assert text_of(ours) == text_of(theirs)


def test_a_histogram_reads_as_the_librarys() -> None:
    ours, theirs = CollectorRegistry(), CollectorRegistry()
    bounds = (0.001, 0.25, 1, 600)
    histogram = Histogram("seconds", "Time.", LABELS, bounds, ours)
    reference = prometheus_client.Histogram(
        "seconds", "Time.", LABELS, registry=theirs, buckets=bounds
    )
    assert text_of(ours) == text_of(theirs), "without a series"
    for labels in SERIES:
        # On bounds, between them, and beyond the last.
        for seconds in (0.0, 0.001, 0.0011, 0.25, 0.5, 1.0, 599.0, 601.0):
            histogram.of(*labels).observe(seconds)
            reference.labels(*labels).observe(seconds)
    assert text_of(ours) == text_of(theirs)


def test_a_scrape_may_ask_for_metrics_by_name() -> None:
    metrics = Metrics()
    metrics.rpc_handled("unary", "a.Service", "Method", "OK", 0.5)
    asked = ["grpc_server_handled_total", "grpc_server_handling_seconds_sum"]
    lines = generate_latest(metrics.registry.restricted_registry(asked)).decode().splitlines()
    assert {line.partition("{")[0] for line in lines if not line.startswith("#")} == set(asked)
