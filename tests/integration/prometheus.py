"""A real Prometheus that scrapes the session's Ray, on loopback, gone afterwards."""

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
    """Answers PromQL."""

    def __init__(self, url: str) -> None:
        self._http = httpx.Client(base_url=url, timeout=10)

    def query(self, promql: str) -> list[tuple[dict[str, str], float]]:
        """Give labels and value of each series of an instant query."""
        found = self._get("query", query=promql)["result"]
        return [(each["metric"], float(each["value"][1])) for each in found]

    def label_values(self, metric: str, label: str) -> list[str]:
        """List the values that a label of a metric has."""
        values: list[str] = self._get(f"label/{label}/values", **{"match[]": metric})
        return values

    def rules(self, settled: Callable[[list[dict[str, Any]]], bool]) -> list[dict[str, Any]]:
        """Give what became of each rule, when all have been evaluated and are as they shall be."""
        deadline = time.monotonic() + 30
        while True:
            rules = [r for group in self._get("rules")["groups"] for r in group["rules"]]
            if all(rule["health"] != "unknown" for rule in rules) and settled(rules):
                return rules
            assert time.monotonic() < deadline, rules
            time.sleep(0.5)

    def _get(self, what: str, **params: str) -> Any:
        response = self._http.get(f"/api/v1/{what}", params=params)
        answer: dict[str, Any] = response.raise_for_status().json()
        assert answer["status"] == "success", answer
        return answer["data"]

    def wait_for(self, promql: str, seconds: float = 60) -> None:
        """Wait until a query gives something."""
        deadline = time.monotonic() + seconds
        while True:
            try:
                if self.query(promql):
                    return
            except (httpx.TransportError, httpx.HTTPStatusError):
                pass  # it has not started yet
            assert time.monotonic() < deadline, promql
            time.sleep(0.5)


@contextmanager
def prometheus(folder: Path, port: int, rules: Path) -> Iterator[Prometheus]:
    """Run it with alert rules; the test is skipped where it is not installed, but not in CI."""
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
        "    scrape_interval: 1s\n"
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
