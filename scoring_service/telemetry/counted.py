"""Counters and histograms that one thread counts, and any other reads.

Those of prometheus_client may be counted by any thread: each number has a lock and is asked whether
it has its labels, which takes ten times as long as to add. A call is a dozen numbers, and the event
loop counts them all.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Sequence
from itertools import accumulate
from math import inf

from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, HistogramMetricFamily
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString


class Total:
    """A series of a counter."""

    __slots__ = ("value",)

    def __init__(self) -> None:
        self.value: float = 0


class Counter(Collector):
    """A counter by the values of its labels.

    Args:
        name: without its `_total`.
        text: what it counts.
        labels: their names.
        registry: that shows it.
    """

    def __init__(
        self, name: str, text: str, labels: Sequence[str], registry: CollectorRegistry
    ) -> None:
        self._about = name, text
        self._labels = labels
        self._series: dict[tuple[str, ...], Total] = {}
        registry.register(self)

    def of(self, *labels: str) -> Total:
        """The series of these values, which is shown from now on."""
        series = self._series.get(labels)
        if series is None:
            series = self._series[labels] = Total()
        return series

    def describe(self) -> Iterator[CounterMetricFamily]:
        """See prometheus_client."""
        yield CounterMetricFamily(*self._about, labels=self._labels)

    def collect(self) -> Iterator[CounterMetricFamily]:
        """See prometheus_client."""
        (family,) = self.describe()
        # Copied at once, because the event loop may add one meanwhile.
        for labels, series in self._series.copy().items():
            family.add_metric(labels, series.value)
        yield family


class Spread:
    """A series of a histogram."""

    __slots__ = ("_bounds", "counts", "sum")

    def __init__(self, bounds: Sequence[float]) -> None:
        self.counts = [0] * (len(bounds) + 1)
        """Values up to each bound and above the one before; the last are above all."""
        self.sum = 0.0
        self._bounds = bounds

    def observe(self, value: float) -> None:
        """Counts a value."""
        self.counts[bisect_left(self._bounds, value)] += 1
        self.sum += value


class Histogram(Collector):
    """A histogram by the values of its labels.

    Args:
        name: of the metric.
        text: what it is of.
        labels: their names.
        bounds: largest values of the buckets, ascending, without infinity.
        registry: that shows it.
    """

    def __init__(
        self,
        name: str,
        text: str,
        labels: Sequence[str],
        bounds: Sequence[float],
        registry: CollectorRegistry,
    ) -> None:
        self._about = name, text
        self._labels = labels
        self._bounds = bounds
        self._buckets = [str(floatToGoString(bound)) for bound in (*bounds, inf)]  # type: ignore[no-untyped-call]
        self._series: dict[tuple[str, ...], Spread] = {}
        registry.register(self)

    def of(self, *labels: str) -> Spread:
        """The series of these values, which is shown from now on."""
        series = self._series.get(labels)
        if series is None:
            series = self._series[labels] = Spread(self._bounds)
        return series

    def describe(self) -> Iterator[HistogramMetricFamily]:
        """See prometheus_client."""
        yield HistogramMetricFamily(*self._about, labels=self._labels)

    def collect(self) -> Iterator[HistogramMetricFamily]:
        """See prometheus_client."""
        (family,) = self.describe()
        for labels, series in self._series.copy().items():
            cumulative = map(float, accumulate(series.counts))
            buckets = list(zip(self._buckets, cumulative, strict=True))
            family.add_metric(labels, buckets, series.sum)
        yield family
