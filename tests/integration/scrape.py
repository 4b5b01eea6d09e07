"""Read the metrics endpoint of each node, as Prometheus does."""

from __future__ import annotations

import time
from collections.abc import Callable

import httpx
import ray
from prometheus_client.parser import text_string_to_metric_families

LIMIT_S = 180.0
"""Until a metric that a process has recorded is at the endpoint; see `tests.conftest`."""


class Scrape:
    """The samples of one application on all nodes at one time."""

    def __init__(self, application: str) -> None:
        self._samples = [
            sample
            for node in ray.nodes()
            if node["Alive"]
            for family in text_string_to_metric_families(_text(node))
            for sample in family.samples
            if sample.labels.get("application") == application
        ]

    def sum(self, name: str, **labels: str) -> float:
        """Return the sum of a metric's samples that have these labels; 0 if there are none."""
        return sum(
            sample.value
            for sample in self._samples
            if sample.name == name and labels.items() <= sample.labels.items()
        )

    @property
    def names(self) -> set[str]:
        return {sample.name for sample in self._samples}


def scraped(application: str, complete: Callable[[Scrape], bool]) -> Scrape:
    """Scrape until all processes have reported; return the last scrape."""
    deadline = time.monotonic() + LIMIT_S
    while not complete(scrape := Scrape(application)):
        assert time.monotonic() < deadline, sorted(scrape.names)
        time.sleep(0.5)
    return scrape


def _text(node: dict[str, object]) -> str:
    url = f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"
    return httpx.get(url).raise_for_status().text
