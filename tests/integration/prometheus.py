"""Run a real Prometheus on loopback that scrapes the session's Ray cluster."""

from __future__ import annotations

import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import ray


class Prometheus:
    """A client of its HTTP API."""

    def __init__(self, url: str) -> None:
        self._http = httpx.Client(base_url=url, timeout=10)

    def query(self, promql: str) -> list[tuple[dict[str, str], float]]:
        """Return labels and value of each series of an instant query."""
        series = self._get("query", query=promql)["result"]
        return [(each["metric"], float(each["value"][1])) for each in series]

    def label_values(self, metric: str, label: str) -> list[str]:
        """Return the values of a metric's label."""
        values: list[str] = self._get(f"label/{label}/values", **{"match[]": metric})
        return values

    def rules(self, condition: Callable[[list[dict[str, Any]]], bool]) -> list[dict[str, Any]]:
        """Wait until all rules have been evaluated and meet a condition; return their states."""
        deadline = time.monotonic() + 180
        while True:
            rules = [r for group in self._get("rules")["groups"] for r in group["rules"]]
            if all(rule["health"] != "unknown" for rule in rules) and condition(rules):
                return rules
            assert time.monotonic() < deadline, rules
            time.sleep(0.5)

    def _get(self, path: str, **params: str) -> Any:
        response = self._http.get(f"/api/v1/{path}", params=params)
        body: dict[str, Any] = response.raise_for_status().json()
        assert body["status"] == "success", body
        return body["data"]

    def answer(self, promql: str, seconds: float = 60) -> list[tuple[dict[str, str], float]]:
        """Return what a query returns once that is any series; nothing after a time limit.

        A scrape that comes late makes its series stale until the next one.
        """
        deadline = time.monotonic() + seconds
        while not (found := self.query(promql)) and time.monotonic() < deadline:
            time.sleep(0.5)
        return found

    def wait_for(self, promql: str, seconds: float = 180) -> None:
        """Wait until a query returns a series."""
        deadline = time.monotonic() + seconds
        while True:
            try:
                if self.query(promql):
                    return
            except (httpx.TransportError, httpx.HTTPStatusError):
                pass  # Prometheus has not started yet
            assert time.monotonic() < deadline, promql
            time.sleep(0.5)


@contextmanager
def prometheus(folder: Path, port: int, rules: Path) -> Iterator[Prometheus]:
    """Run it with alert rules; skip the test if it is not installed."""
    program = shutil.which("prometheus")
    if program is None:
        pytest.skip("prometheus is not on the PATH")
    targets = [f"{n['NodeManagerAddress']}:{n['MetricsExportPort']}" for n in ray.nodes()]
    config = folder / "prometheus.yml"
    config.write_text(
        "global: {evaluation_interval: 1s}\n"
        f"rule_files: ['{rules}']\n"
        "scrape_configs:\n"
        "  - job_name: ray\n"
        # Also the limit of a scrape, after which all series are stale: the page lists every replica
        # that the cluster ever had.
        "    scrape_interval: 8s\n"
        f"    static_configs: [{{targets: {targets}}}]\n"
    )
    process = subprocess.Popen(
        [
            program,
            f"--config.file={config}",
            f"--storage.tsdb.path={folder / 'data'}",
            f"--web.listen-address=127.0.0.1:{port}",
        ],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        yield Prometheus(f"http://127.0.0.1:{port}")
    finally:
        process.terminate()
        process.wait(30)
