"""All metrics, their names in Prometheus, and a recorder that keeps all values."""

from __future__ import annotations

import threading
from collections import defaultdict

from deployments.runtime import metrics
from deployments.runtime.metrics import PREFIX, Counter, Gauge, Histogram, Metric

METRICS = [value for value in vars(metrics).values() if isinstance(value, Metric)]
EXPORT_PREFIX = f"ray_{PREFIX}"
Labels = frozenset[tuple[str, str]]


def exported_name(metric: Metric) -> str:
    """Return the name in Prometheus, without the endings of a histogram's series."""
    return f"{EXPORT_PREFIX}{metric.name}{'_total' if isinstance(metric, Counter) else ''}"


def exported_series(metric: Metric) -> list[str]:
    """Return the names of the series to query; a histogram's sum is only an estimate."""
    endings = ("_bucket", "_count") if isinstance(metric, Histogram) else ("",)
    return [f"{exported_name(metric)}{ending}" for ending in endings]


class Measured:
    """All recorded values; labels that a metric does not declare are an error."""

    def __init__(self) -> None:
        self._values: dict[str, dict[Labels, list[float]]] = defaultdict(lambda: defaultdict(list))
        self._lock = threading.Lock()

    def add(self, metric: Counter, value: float = 1.0, /, **labels: str) -> None:
        assert value >= 0
        if value:
            self._keep(metric, value, labels)

    def set(self, metric: Gauge, value: float, /, **labels: str) -> None:
        self._keep(metric, value, labels)

    def observe(self, metric: Histogram, value: float, /, **labels: str) -> None:
        assert value >= 0
        self._keep(metric, value, labels)

    def _keep(self, metric: Metric, value: float, labels: dict[str, str]) -> None:
        assert set(labels) == set(metric.labels), (metric, labels)
        with self._lock:
            self._values[metric.name][frozenset(labels.items())].append(value)

    def values(self, metric: Metric, **labels: str) -> list[float]:
        """Return the values of all label sets that include these labels."""
        with self._lock:
            return [
                value
                for recorded, values in self._values[metric.name].items()
                if labels.items() <= dict(recorded).items()
                for value in values
            ]

    def total(self, metric: Metric, **labels: str) -> float:
        return sum(self.values(metric, **labels))

    def last(self, metric: Gauge, **labels: str) -> float:
        """Return the latest value of a gauge."""
        return self.values(metric, **labels)[-1]
