"""A server for one benchmark, with a temporary folder; it leaves nothing behind."""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import yaml

from benchmarks import machine
from examples.server_process import ServerEnded, ServerProcess
from serve_app.ports import free_port

CONFIG = Path(__file__).parents[1] / "config" / "local.yaml"
START_LIMIT_S = 300.0
STOP_LIMIT_S = 60.0
INGRESS = "ray::ServeReplica:earth2serve:Ingress"
"""Beginning of the titles of ingress replicas."""

_opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))


class Server:
    """Runs ``python -m serve_app`` with a changed config/local.yaml.

    Parameters
    ----------
    name : str
        For messages.
    args : dict
        Replaces entries of ``args``; ``data_dir`` is a temporary folder.
    applications : list of dict, optional
        Further applications to serve.
    environment : mapping, optional
        Variables of the server.
    """

    def __init__(
        self,
        name: str,
        args: dict[str, Any],
        applications: list[dict[str, Any]] | None = None,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self.name = name
        self.folder = Path(tempfile.mkdtemp(prefix="e2s-bench-"))
        config = yaml.safe_load(CONFIG.read_text(encoding="utf-8"))
        ours = config["applications"][0]
        ours["args"] = {**ours["args"], **args, "data_dir": str(self.folder / "data")}
        config["applications"] += applications or []
        self._config = self.folder / "config.yaml"
        self._config.write_text(yaml.safe_dump(config), encoding="utf-8")
        self._process: ServerProcess | None = None
        self._environment = environment or {}
        self.port = free_port()
        self.base = f"http://127.0.0.1:{self.port}"
        self.start_s = 0.0

    def __enter__(self) -> Server:
        started = time.monotonic()
        environment = {
            # A separate cluster, whatever else runs on this machine.
            "RAY_ADDRESS": "local",
            "RAY_TMPDIR": str(self.folder / "ray"),
            "RAY_SERVE_HAPROXY_METRICS_PORT": str(free_port()),
            "RAY_SERVE_HAPROXY_STATS_PORT": str(free_port()),
            "EXPOSED_WORKFLOWS": "",
            **self._environment,
        }
        command = [sys.executable, "-m", "serve_app", str(self._config), "--port", str(self.port)]
        try:
            self._process = ServerProcess(command, environment, self.folder / "log")
            self._wait_until_ready(self._process, started + START_LIMIT_S)
        except BaseException:
            self._stop()
            raise
        self.start_s = time.monotonic() - started
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stop()

    def processes(self) -> list[int]:
        """Return the server's processes."""
        return [] if self._process is None else machine.tree(self._process.pid)

    def ingress_bytes(self) -> int:
        """Return the memory of all ingress replicas (PSS)."""
        sizes = machine.pss_by_name(self.processes())
        return sum(size for name, (_, size) in sizes.items() if name.startswith(INGRESS))

    def metrics(self) -> Iterator[str]:
        """Yield the metrics of each Ray node, in Prometheus' text format."""
        listed = self.folder / "ray/ray/session_latest/prom_metrics_service_discovery.json"
        for entry in json.loads(listed.read_text()):
            for address in entry["targets"]:
                with _opener.open(f"http://{address}/metrics", timeout=10) as answer:
                    yield answer.read().decode()

    def _wait_until_ready(self, process: ServerProcess, deadline: float) -> None:
        reason = "the time limit has passed"
        while time.monotonic() < deadline:
            try:
                process.check()
                with _opener.open(f"{self.base}/readiness", timeout=5):
                    return
            except ServerEnded as ended:
                reason = str(ended)
                break
            except (urllib.error.URLError, OSError):
                time.sleep(0.5)
        raise RuntimeError(
            f"the server {self.name!r} did not become ready, {reason}:\n{process.log_tail()}"
        )

    def _stop(self) -> None:
        if self._process is not None:
            self._process.stop(STOP_LIMIT_S)
        shutil.rmtree(self.folder, ignore_errors=True)
