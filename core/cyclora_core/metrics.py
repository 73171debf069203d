"""What a process measures about itself, for Prometheus.

Nothing here is global: who measures is handed its instruments, so that several of a kind can live
in one process. What costs something to keep up to date is read only when somebody asks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

import cyclora_core

PREFIX = "cyclora_"

SHORT_S = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5)
"""Bounds, in seconds, for what somebody notices: answers, wake-ups, plans."""

LONG_S = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 1800.0)
"""Bounds, in seconds, for work: cycles, operations, snapshots."""

COUNTS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)
"""Bounds for how many of something a cycle holds."""

TOKENS = (64, 256, 1024, 4096, 16_384, 65_536, 262_144)
"""Bounds for the tokens of a cycle."""

OTHER = "other"
"""The label of all that get none of their own."""

Reading = float | Mapping[str, float]
"""A value, or one for each value of the label."""


class Kind(StrEnum):
    """How a metric behaves; the words of Prometheus."""

    COUNTER = "counter"
    GAUGE = "gauge"
    HISTOGRAM = "histogram"


@dataclass(frozen=True, slots=True)
class Definition:
    """What a metric is called and means."""

    name: str
    kind: Kind
    meaning: str
    labels: Sequence[str] = ()


class Instruments:
    """All metrics of one process, each made once and under its definition."""

    def __init__(self, process: str) -> None:
        self.registry = CollectorRegistry()
        self.definitions: list[Definition] = []
        ProcessCollector(registry=self.registry)
        info = self.gauge("build_info", "Always 1; the labels say what runs.", "process", "version")
        info.labels(process, cyclora_core.__version__).set(1)

    def counter(self, name: str, meaning: str, *labels: str) -> Counter:
        """Something that only grows, and begins at 0 with the process."""
        full = self._define(f"{name}_total", Kind.COUNTER, meaning, labels)
        return Counter(full, meaning, labels, registry=self.registry)

    def gauge(self, name: str, meaning: str, *labels: str) -> Gauge:
        """Something as it is."""
        full = self._define(name, Kind.GAUGE, meaning, labels)
        return Gauge(full, meaning, labels, registry=self.registry)

    def histogram(
        self, name: str, meaning: str, *labels: str, bounds: Sequence[float] = SHORT_S
    ) -> Histogram:
        """How often something was how large."""
        full = self._define(name, Kind.HISTOGRAM, meaning, labels)
        return Histogram(full, meaning, labels, buckets=bounds, registry=self.registry)

    def read_gauge(
        self, name: str, meaning: str, read: Callable[[], Reading], *labels: str
    ) -> None:
        """Something that is looked up when somebody asks, in a thread of its own.

        ``read`` must be right beside whatever the process does meanwhile.
        """
        full = self._define(name, Kind.GAUGE, meaning, labels)
        self.registry.register(_Read(GaugeMetricFamily, full, meaning, labels, read))

    def read_counter(
        self, name: str, meaning: str, read: Callable[[], Reading], *labels: str
    ) -> None:
        """As ``read_gauge``, for a number that only grows and that somebody else keeps."""
        full = self._define(f"{name}_total", Kind.COUNTER, meaning, labels)
        self.registry.register(_Read(CounterMetricFamily, full, meaning, labels, read))

    def _define(self, name: str, kind: Kind, meaning: str, labels: Sequence[str]) -> str:
        full = PREFIX + name
        self.definitions.append(Definition(full, kind, meaning, tuple(labels)))
        return full


class _Read(Collector):
    """A metric whose samples are read when they are collected."""

    def __init__(
        self,
        family: type[GaugeMetricFamily] | type[CounterMetricFamily],
        name: str,
        meaning: str,
        labels: Sequence[str],
        read: Callable[[], Reading],
    ) -> None:
        self._family = family
        self._name = name
        self._meaning = meaning
        self._labels = labels
        self._read = read

    def describe(self) -> list[Metric]:
        # So that registering reads nothing.
        return [self._family(self._name, self._meaning, labels=self._labels)]

    def collect(self) -> Iterator[Metric]:
        family = self._family(self._name, self._meaning, labels=self._labels)
        reading = self._read()
        if isinstance(reading, Mapping):
            for value, number in reading.items():
                family.add_metric([value], number)
        else:
            family.add_metric([], reading)
        yield family


class TenantLabels:
    """Tenants with a label of their own: those seen first, so that metrics stay few."""

    def __init__(self, max_tenants: int) -> None:
        self._max_tenants = max_tenants
        self._known: set[str] = set()

    def of(self, tenant_id: str) -> str:
        """The tenant itself, or ``OTHER`` for all that came when there were enough."""
        if tenant_id in self._known:
            return tenant_id
        if len(self._known) >= self._max_tenants:
            return OTHER
        self._known.add(tenant_id)
        return tenant_id
