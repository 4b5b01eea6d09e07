"""What Prometheus would read at the metrics endpoint of a node."""

from __future__ import annotations

import time
from collections.abc import Callable

import httpx
import ray
from prometheus_client.parser import text_string_to_metric_families

REPORT_S = 10.0
"""How often Ray gathers from its processes, unless configured otherwise."""


class Scrape:
    """Samples of all nodes, as they were read once.

    Parameters
    ----------
    application : str
        Samples of others are left out.
    """

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
        """Add up the samples of a name that have these labels; 0 if there are none."""
        return sum(
            sample.value
            for sample in self._samples
            if sample.name == name and labels.items() <= sample.labels.items()
        )

    @property
    def names(self) -> set[str]:
        return {sample.name for sample in self._samples}


def scraped(application: str, complete: Callable[[Scrape], bool]) -> Scrape:
    """Scrape until what is waited for has been reported by every process."""
    deadline = time.monotonic() + 4 * REPORT_S
    while not complete(found := Scrape(application)):
        assert time.monotonic() < deadline, sorted(found.names)
        time.sleep(0.5)
    return found


def _text(node: dict[str, object]) -> str:
    url = f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"
    return httpx.get(url).raise_for_status().text
