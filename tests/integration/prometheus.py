"""A real Prometheus that scrapes the session's Ray, on loopback, gone afterwards."""

from __future__ import annotations

import shutil
import subprocess
import time
from collections.abc import Iterator
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
        response = self._http.get("/api/v1/query", params={"query": promql})
        answer: dict[str, Any] = response.raise_for_status().json()
        assert answer["status"] == "success", answer
        return [(each["metric"], float(each["value"][1])) for each in answer["data"]["result"]]

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
def prometheus(folder: Path, port: int) -> Iterator[Prometheus]:
    """Run it; the test is skipped where it is not installed."""
    program = shutil.which("prometheus")
    if program is None:
        pytest.skip("the program prometheus is not on the PATH")
    targets = [f"{n['NodeManagerAddress']}:{n['MetricsExportPort']}" for n in ray.nodes()]
    config = folder / "prometheus.yml"
    config.write_text(
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
