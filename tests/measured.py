"""A recorder of metrics that keeps all values, instead of Ray's."""

from __future__ import annotations

import threading
from collections import defaultdict

from deployments.runtime.metrics import Counter, Gauge, Histogram, Metric

Labels = frozenset[tuple[str, str]]


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
